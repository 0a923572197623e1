"""A person's own history, as pages."""

import re
import uuid

import pytest
from sqlalchemy import select, text, update

from app.store import history
from app.store.models import Comparison, Judgment
from tests.web.conftest import FETCHING, judgment
from tests.web.reading import tasks_of, words_of


@pytest.fixture
def base(cast):
    return f"/p/{cast.project.slug}"


def judge(browser, base, **fields):
    task = tasks_of(browser.get(f"{base}/judge").text)[0]
    assert browser.post(f"{base}/judgments", data=judgment(task, **fields), headers=FETCHING).status_code == 200
    return task


def entries(html):
    return re.findall(r'class="entry" href="[^"]+/history/([^"]+)"', html)


def test_the_list_says_in_words_what_was_chosen_and_leads_to_revising(annotator, base):
    tasks = [judge(annotator, base, verdict=verdict) for verdict in ("left", "tie", "both_bad")]
    page = annotator.get(f"{base}/history").text
    said = words_of(page)
    assert said.index("Both bad") < said.index("About the same") < said.index("Left better")
    assert said.count("counts") == 3
    assert [f"{base}/judge?revise={task['comparison']}" in page for task in tasks] == [True] * 3


def test_an_entry_opens_to_the_whole_text_with_the_chosen_answer_marked_and_all_revisions(annotator, base):
    task = judge(annotator, base, verdict="left")
    annotator.post(f"{base}/judgments", data=judgment(task, verdict="right"), headers=FETCHING)
    [entry] = entries(annotator.get(f"{base}/history").text)
    page = words_of(annotator.get(f"{base}/history/{entry}").text)
    assert "Right you chose this one" in page
    assert page.index("Right better") < page.index("Left better")
    annotator.post(f"{base}/undo", headers=FETCHING)
    page = annotator.get(f"{base}/history/{entry}").text
    assert "withdrawn" in words_of(page)
    assert "revise=" not in page
    assert "withdrawn" in words_of(annotator.get(f"{base}/history").text)


def test_pages_follow_by_time_and_id(annotator, base, monkeypatch):
    monkeypatch.setattr(history, "PAGE", 2)
    for _ in range(5):
        judge(annotator, base)
    found, address = [], f"{base}/history"
    while address:
        page = annotator.get(address).text
        found += entries(page)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        address = older and older[1].replace("&amp;", "&")
    assert len(found) == len(set(found)) == 5
    assert annotator.get(f"{base}/history?at=yesterday&id={uuid.uuid4()}").status_code == 422


def test_somebody_elses_entry_does_not_exist(annotator, admin, base):
    judge(annotator, base)
    [entry] = entries(annotator.get(f"{base}/history").text)
    assert entries(admin.get(f"{base}/history").text) == []
    assert admin.get(f"{base}/history/{entry}").status_code == 404
    assert annotator.get(f"{base}/history/{uuid.uuid4()}").status_code == 404


def test_gold_and_repeats_cannot_be_told_from_other_comparisons(annotator, base, house):
    for _ in range(2):
        judge(annotator, base)
    ids = entries(annotator.get(f"{base}/history").text)

    def shown():
        pages = [annotator.get(f"{base}/history").text, *(annotator.get(f"{base}/history/{one}").text for one in ids)]
        return [re.sub(r"\d+ s ago|just now", "", page) for page in pages]

    ordinary = shown()
    with house.store() as s:
        first, second = s.scalars(select(Judgment.comparison_id).order_by(Judgment.id)).all()
        s.execute(text("UPDATE slot SET state = 'free', holder_id = NULL"))
        s.execute(update(Comparison).where(Comparison.id == first).values(reason="gold", votes_wanted=0))
        changed = {"reason": "repeat", "votes_wanted": 0, "repeat_of": first}
        s.execute(update(Comparison).where(Comparison.id == second).values(**changed))
    assert shown() == ordinary
