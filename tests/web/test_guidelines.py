"""Guidelines: reading, the reading gate, what changed, editing."""

import pytest

from app.store import guidelines, projects
from app.web.changes import Piece, changes
from tests.web.conftest import FETCHING
from tests.web.reading import words_of


@pytest.fixture
def base(house, cast):
    with house.store() as s:
        projects.revise_guidelines(s, cast.project.id, "Be fair.\nName the order.")
    return f"/p/{cast.project.slug}/guidelines"


def current(house, cast):
    with house.store() as s:
        return guidelines.current(s, cast.project.id)


def test_reading_is_confirmed_once_and_leads_back_to_work(annotator, base, cast):
    work = f"/p/{cast.project.slug}/write"
    page = annotator.get(f"{base}?next={work}").text
    assert "Be fair." in page
    assert "Before you begin" in words_of(page)
    answer = annotator.post(f"{base}/read", data={"version": 2, "next": work})
    assert (answer.status_code, answer.headers["location"]) == (303, work)
    assert "I have read them" not in annotator.get(base).text
    for elsewhere in ("https://example.org", "//example.org", "/\\example.org"):
        answer = annotator.post(f"{base}/read", data={"version": 2, "next": elsewhere})
        assert answer.headers["location"] == "/"
    assert annotator.post(f"{base}/read", data={"version": 9}).status_code == 404


def test_after_a_change_the_reader_sees_what_changed_since_the_version_they_know(annotator, base, house, cast):
    annotator.post(f"{base}/read", data={"version": 2})
    with house.store() as s:
        projects.revise_guidelines(s, cast.project.id, "Be fair.\nName the order and the item.")
        projects.revise_guidelines(s, cast.project.id, "Be fair.\nName the order and the <b>day</b>.")
    page = annotator.get(base).text
    assert '<ins><span class="away">added: </span> and the &lt;b&gt;day&lt;/b&gt;</ins>' in page
    assert "since you read version 2" in words_of(page)
    assert "I have read them" in page


def test_an_admin_edits_and_the_version_has_their_name(admin, annotator, base, house, cast):
    assert "Name the order.</textarea>" in admin.get(f"{base}/edit").text
    preview = admin.post(f"{base}/preview", data={"body": "# Now", "base": 2}, headers=FETCHING)
    assert preview.text.startswith('<section id="preview"')
    answer = admin.post(base, data={"body": "Be kind.\r\nBe brief.", "base": 2})
    assert answer.headers["location"] == base
    newest = current(house, cast)
    assert (newest.version, newest.body, newest.by) == (3, "Be kind.\nBe brief.", cast.people["admin"].username)
    assert cast.people["admin"].username in admin.get(base).text
    old = words_of(admin.get(f"{base}/2").text)
    assert "Be fair." in old
    assert "People go by version 3 now" in old
    assert annotator.get(f"{base}/3").status_code == 200
    assert annotator.get(f"{base}/4").status_code == 404
    assert annotator.get(f"{base}/99999999999").status_code == 404
    assert annotator.post(base, data={"body": "Mine.", "base": 3}).status_code == 403


def test_a_stale_form_is_refused_with_both_texts_kept(admin, base, house, cast):
    with house.store() as s:
        projects.revise_guidelines(s, cast.project.id, "Written by somebody else.", cast.people["annotator"].id)
    answer = admin.post(base, data={"body": "Written by me.", "base": 2})
    assert answer.status_code == 409
    assert "Written by somebody else.</pre>" in answer.text
    assert "Written by me.</textarea>" in answer.text
    assert 'name="base" value="3"' in answer.text
    assert current(house, cast).version == 3
    assert admin.post(base, data={"body": "Both.", "base": 3}).status_code == 303


def test_what_cannot_be_kept_is_said_with_the_text_still_there(admin, base, house, cast):
    for body in ("x" * 100_001, "a\0b"):
        answer = admin.post(base, data={"body": body, "base": 2})
        assert answer.status_code == 422
        assert 'role="alert"' in answer.text
        assert f"{body}</textarea>" in answer.text
    assert current(house, cast).version == 2


def test_changes_are_found_by_word_within_lines_and_give_the_new_text():
    old = "Be fair.\nName the order.\nStay calm.\n"
    new = "Be fair.\nName the right order.\nThank them.\nStay calm."
    found = changes(old, new)
    assert "".join(piece.text for piece in found if piece.kind != "removed") == new
    assert "".join(piece.text for piece in found if piece.kind != "added") == old
    assert next(piece.text for piece in found if piece.kind == "added").strip() == "right"
    assert changes(old, old) == [Piece("same", old)]
    assert changes("", "") == []
