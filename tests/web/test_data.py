"""Data in and out, over HTTP."""

import json

import pytest

from app.store import prompts
from tests.web.conftest import FETCHING, Cast, judgment
from tests.web.reading import tasks_of, words_of


@pytest.fixture
def base(cast: Cast) -> str:
    """The project's address."""
    return f"/p/{cast.project.slug}"


def send(admin, base: str, text: str, kind: str = "prompts", **kwargs: object):
    return admin.post(
        f"{base}/data/import",
        data={"kind": kind},
        files={"file": ("rows.jsonl", text.encode(), "text/plain")},
        **kwargs,
    )


def test_a_file_comes_in_and_is_reported(admin, base, house, cast):
    text = "".join(json.dumps({"prompt": f"What now, {i}?"}) + "\n" for i in range(5))
    report = words_of(send(admin, base, text, headers=FETCHING).text)
    assert "5 added of 5 in rows.jsonl" in report
    page = send(admin, base, json.dumps({"prompt": "And now?"}) + "\n")
    assert "1 added of 1" in words_of(page.text)
    with house.store() as s:
        counts = prompts.counts(s, cast.project.id)
    assert counts.train + counts.heldout == 6 + 6


def test_one_malformed_line_is_named_and_nothing_comes_in(admin, base, house, cast):
    text = json.dumps({"prompt": "A good line"}) + "\n" + "{broken\n"
    answer = send(admin, base, text, headers=FETCHING)
    assert answer.status_code == 422
    assert "line 2" in words_of(answer.text).lower()
    with house.store() as s:
        counts = prompts.counts(s, cast.project.id)
    assert counts.train + counts.heldout == 6


@pytest.mark.parametrize("wrong", [{"kind": "votes"}, {"kind": "prompts", "project_id": "x"}, {}])
def test_a_malformed_import_form_is_refused(admin, base, wrong):
    files = {"file": ("rows.jsonl", b"{}", "text/plain")}
    assert admin.post(f"{base}/data/import", data=wrong, files=files, headers=FETCHING).status_code == 422


def test_judgments_leave_as_pairs_and_with_their_provenance(admin, annotator, base, cast):
    for task in tasks_of(annotator.get(f"{base}/judge").text):
        annotator.post(f"{base}/judgments", data=judgment(task), headers=FETCHING)
    pairs = admin.get(f"{base}/data/judgments.jsonl?format=trl")
    assert pairs.headers["content-disposition"] == f'attachment; filename="{cast.project.slug}-trl.jsonl"'
    rows = [json.loads(line) for line in pairs.text.splitlines()]
    assert len(rows) == 2
    assert set(rows[0]) == {"prompt", "chosen", "rejected"}
    full = admin.get(f"{base}/data/judgments.jsonl?format=full").text
    assert len(full.splitlines()) == 2
    assert cast.people["annotator"].username not in full
    assert str(cast.people["annotator"].id) not in full
    assert admin.get(f"{base}/data/judgments.jsonl?format=csv", headers=FETCHING).status_code == 422
