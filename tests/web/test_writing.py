"""Writing ideal answers, and drafts, as HTTP."""

import json
import re
import uuid

import pytest
from sqlalchemy import select, text, update

from app.core.vocabulary import Mode
from app.store import drafts, guidelines, projects, prompts
from app.store.models import Completion, Demonstration, Membership, Project, Writing
from tests.web.conftest import FETCHING, Cast, House
from tests.web.reading import words_of


@pytest.fixture
def base(house: House, cast: Cast, make_with) -> str:
    """The address of the project, which asks for demonstrations."""
    with house.store() as s:
        s.execute(update(Project).where(Project.id == cast.project.id).values(mode=Mode.DEMONSTRATE))
    return f"/p/{cast.project.slug}"


def prompt_of(html: str) -> str:
    return re.search(r'data-prompt="([^"]+)"', html)[1]


def form(html: str, words: str = "An ideal answer.", **fields: object) -> dict[str, object]:
    return {"prompt_id": prompt_of(html), "key": str(uuid.uuid4()), "text": words, "edited_from_id": ""} | fields


def stored(house: House) -> list[str]:
    with house.store() as s:
        return list(
            s.scalars(select(Completion.text).join(Demonstration, Demonstration.completion_id == Completion.id))
        )


def test_judging_leads_to_writing_and_back_again_where_pairs_are_judged(annotator, base, house, cast):
    assert annotator.get(f"{base}/judge").headers["location"] == f"{base}/write"
    with house.store() as s:
        s.execute(update(Project).where(Project.id == cast.project.id).values(mode=Mode.PAIR))
    assert annotator.get(f"{base}/write").headers["location"] == f"{base}/judge"


def test_the_answer_to_a_submit_is_the_next_prompt(annotator, base, house):
    page = annotator.get(f"{base}/write").text
    assert prompt_of(page) == prompt_of(annotator.get(f"{base}/write").text)
    answer = annotator.post(f"{base}/write", data=form(page, active_ms=1200, held=""), headers=FETCHING)
    assert answer.status_code == 200
    assert prompt_of(answer.text) != prompt_of(page)
    assert "1 today" in words_of(answer.text)
    assert stored(house) == ["An ideal answer."]


def test_sending_twice_is_writing_once_and_another_text_under_the_key_is_refused(annotator, base, house):
    sent = form(annotator.get(f"{base}/write").text)
    for _ in range(2):
        assert annotator.post(f"{base}/write", data=sent, headers=FETCHING).status_code == 200
    refused = annotator.post(f"{base}/write", data=sent | {"text": "Other."}, headers=FETCHING)
    assert (refused.status_code, 'id="notice"' in refused.text) == (409, True)
    assert stored(house) == ["An ideal answer."]


def test_bad_input_is_said_in_the_page_with_the_text_still_there(annotator, base, house):
    page = annotator.get(f"{base}/write").text
    for words, says in [(" ", "no text yet"), ("y" * 20_001, "20,000 characters"), ("kept\0", "cannot be stored")]:
        answer = annotator.post(f"{base}/write", data=form(page, words))
        assert answer.status_code == 422
        assert says in words_of(answer.text)
        assert prompt_of(answer.text) == prompt_of(page)
        assert f"\n{words}</textarea>" in answer.text
        told = annotator.post(f"{base}/write", data=form(page, words), headers=FETCHING)
        assert told.text.startswith('<div id="notice"')
    assert stored(house) == []


def test_a_malformed_form_is_refused(annotator, base, house):
    page = annotator.get(f"{base}/write").text
    anything = str(uuid.uuid4())
    for wrong in ({"prompt_id": "x"}, {"key": "x"}, {"active_ms": "-1"}, {"author_id": anything}, {"late": "1"}):
        assert annotator.post(f"{base}/write", data=form(page) | wrong, headers=FETCHING).status_code == 422
    assert stored(house) == []


def test_without_scripts_forms_write_start_from_the_better_answer_skip_and_revise(annotator, base, house):
    page = annotator.get(f"{base}/write?start=better").text
    began = re.search(r'name="edited_from_id" value="([^"]+)"', page)[1]
    better = re.search(r'(?s)<textarea id="answer"[^>]*>\n(.*?)</textarea>', page)[1]
    assert better.startswith("answer-")
    sent = form(page, f"{better}, better", edited_from_id=began)
    assert annotator.post(f"{base}/write", data=sent).headers["location"] == f"{base}/write"
    page = annotator.get(f"{base}/write").text
    left = annotator.post(f"{base}/write/skip", data={"prompt_id": prompt_of(page), "reason": "not_my_field"})
    assert left.headers["location"] == f"{base}/write"
    page = annotator.get(f"{base}/write").text
    again = re.search(rf'href="({base}/write\?revise=[^"]+)"', page)[1]
    page = annotator.get(again).text
    assert f"{better}, better</textarea>" in page
    annotator.post(f"{base}/write", data=form(page, "Revised.", edited_from_id=began))
    assert sorted(stored(house)) == sorted([f"{better}, better", "Revised."])
    with house.store() as s:
        standing = s.scalars(select(Demonstration).where(Demonstration.replaces_id.is_not(None))).one()
        assert prompts.counts(s, standing.project_id).demonstrations == 1


def test_a_demonstration_of_somebody_else_cannot_be_revised(annotator, admin, base, house):
    annotator.post(f"{base}/write", data=form(annotator.get(f"{base}/write").text))
    with house.store() as s:
        demonstration = s.scalars(select(Demonstration.id)).one()
    assert annotator.get(f"{base}/write?revise={demonstration}").status_code == 200
    assert admin.get(f"{base}/write?revise={demonstration}").status_code == 404
    assert admin.get(f"{base}/write?revise={uuid.uuid4()}").status_code == 404


def test_who_may_not_be_handed_work_is_told_why_and_what_they_hold_is_taken(annotator, base, house, cast):
    page = annotator.get(f"{base}/write").text
    with house.store() as s:
        s.execute(
            update(Membership)
            .where(Membership.account_id == cast.people["annotator"].id)
            .values(paused_at=text("now()"))
        )
    shown = annotator.get(f"{base}/write")
    assert "data-prompt" not in shown.text
    assert "paused" in words_of(shown.text)
    answer = annotator.post(f"{base}/write", data=form(page), headers=FETCHING)
    assert (answer.status_code, "data-prompt" in answer.text) == (200, False)
    assert stored(house) == ["An ideal answer."]


def test_changed_guidelines_come_before_the_next_prompt(annotator, base, house, cast):
    page = annotator.get(f"{base}/write").text
    with house.store() as s:
        projects.revise_guidelines(s, cast.project.id, "Name the order.")
    assert annotator.get(f"{base}/write").headers["location"].startswith(f"{base}/guidelines?next=")
    answer = annotator.post(f"{base}/write", data=form(page, guideline_version=1), headers=FETCHING)
    assert f'data-onward="{base}/guidelines?next=' in answer.text
    with house.store() as s:
        guidelines.mark_read(s, cast.project.id, cast.people["annotator"].id, 2)
        assert s.scalars(select(Demonstration.guideline_version)).one() == 1
    assert "data-prompt" in annotator.get(f"{base}/write").text


def test_a_draft_comes_back_and_goes_with_the_submit(annotator, base, house, cast):
    page = annotator.get(f"{base}/write").text
    body = json.dumps({"text": "Dear cust <b>", "edited_from_id": "", "base": ""})
    where = f"{base}/drafts/{prompt_of(page)}"
    assert annotator.post(where, data={"body": body}, headers=FETCHING).status_code == 204
    assert "Dear cust &lt;b&gt;</textarea>" in annotator.get(f"{base}/write").text
    annotator.post(f"{base}/write", data=form(page), headers=FETCHING)
    with house.store() as s:
        assert drafts.load(s, cast.people["annotator"].id, [uuid.UUID(prompt_of(page))]) == {}


def test_what_is_no_draft_is_refused(annotator, base):
    where = f"{base}/drafts/{prompt_of(annotator.get(f'{base}/write').text)}"
    for body in ("[]", "{", '{"a":' * 5000, '{"a": "\\u0000"}', '"x"'):
        assert annotator.post(where, data={"body": body}, headers=FETCHING).status_code == 422


def test_a_draft_for_what_was_not_handed_to_one_is_a_404(annotator, admin, base, house):
    where = f"{base}/drafts/{prompt_of(annotator.get(f'{base}/write').text)}"
    assert admin.post(where, data={"body": "{}"}, headers=FETCHING).status_code == 404
    with house.store() as s:
        assert len(s.scalars(select(Writing)).all()) == 1
