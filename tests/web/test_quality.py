"""The pages of quality and settings, as a browser without scripts gets them."""

import re

import pytest

from app.store import configuring, gold
from app.store.models import Gold, Membership, Project
from tests.web.conftest import FETCHING, judgment
from tests.web.reading import tasks_of


@pytest.fixture
def base(cast):
    return f"/p/{cast.project.slug}"


def settings(house, cast, **values):
    """The form as the page would send it: switches that are off are not in it."""
    with house.store() as s:
        now = configuring.settings_of(s.get_one(Project, cast.project.id)).model_dump(mode="json")
    return {name: "" if v is None else v for name, v in (now | values).items() if v is not False}


def write(admin, base, n, **fields):
    for i in range(n):
        data = {"prompt": f"Where is order {i}?", "answer": [f"It is on its way, {i}.", "Who knows."]}
        form = data | {"best": 0, "explanation": f"It names order {i}.", "qualification": "true"} | fields
        assert admin.post(f"{base}/gold/write", data=form).status_code == 303


def test_each_page_opens_and_is_never_kept(admin, annotator, base):
    for browser, path in ((admin, "quality"), (admin, "gold"), (admin, "settings"), (admin, "me"), (annotator, "me")):
        answer = browser.get(f"{base}/{path}")
        assert answer.status_code == 200, path
        assert "no-store" in answer.headers["cache-control"]
    assert annotator.get(f"{base}/quality").status_code == 403


def test_people_are_sorted_by_named_columns_only(admin, base):
    for column in ("name", "judgments", "seconds", "consistency", "agreement", "gold", "left", "skill"):
        answer = admin.get(f"{base}/quality", params={"sort": column})
        assert len(re.findall("aria-sort", answer.text)) == 1
    assert admin.get(f"{base}/quality", params={"sort": "pseudonym"}).status_code == 422


def test_a_newcomer_goes_through_the_round_and_reads_why(house, cast, admin, annotator, base):
    write(admin, base, 2)
    refused = admin.post(f"{base}/settings", data=settings(house, cast, qualify_on=3), headers=FETCHING)
    assert refused.status_code == 422
    assert "only 2 gold comparisons" in refused.text
    saved = admin.post(f"{base}/settings", data=settings(house, cast, qualify_on=2), headers=FETCHING)
    assert "Saved." in saved.text
    assert "Qualification round" in saved.text
    seen = tasks_of(annotator.get(f"{base}/judge").text)
    assert len(seen) == 2
    assert all("gold" not in key.lower() for task in seen for key in task)
    with house.store() as s:
        known = {str(one.comparison_id) for one in s.query(Gold)}
    assert {task["comparison"] for task in seen} == known
    held = ",".join(task["comparison"] for task in seen)
    # What was typed first, canonical 0, is right.
    right, wrong = ("left", "right") if seen[0]["order"] == "0,1" else ("right", "left")
    first = annotator.post(f"{base}/judgments", data=judgment(seen[0], verdict=right, held=held), headers=FETCHING)
    assert "Right." in first.text
    assert "It names order" in first.text
    right, wrong = ("left", "right") if seen[1]["order"] == "0,1" else ("right", "left")
    last = annotator.post(f"{base}/judgments", data=judgment(seen[1], verdict=wrong, held=held), headers=FETCHING)
    assert "Not the answer that was expected." in last.text
    assert "not yet enough" in last.text
    assert "data-task" not in last.text
    assert "is not passed yet" in annotator.get(f"{base}/me").text
    person = cast.people["annotator"]
    # There is no gold left that this person has not met; the admin may still let them in.
    again = admin.post(f"{base}/quality/{person.id}/try-again", headers=FETCHING)
    assert again.status_code == 409
    assert "by hand" in again.text
    assert admin.post(f"{base}/quality/{person.id}/qualify").status_code == 303
    assert len(tasks_of(annotator.get(f"{base}/judge").text)) == 2


def test_an_admin_pauses_leaves_out_and_takes_back(house, cast, admin, base):
    person = cast.people["annotator"]

    def member():
        with house.store() as s:
            return s.get_one(Membership, (cast.project.id, person.id))

    for act, column, value in (
        ("pause", "paused_at", True),
        ("resume", "paused_at", False),
        ("leave-out", "left_out", True),
        ("take-in", "left_out", False),
    ):
        assert admin.post(f"{base}/quality/{person.id}/{act}").status_code == 303
        assert bool(getattr(member(), column)) is value
    assert admin.post(f"{base}/quality/{cast.stranger.id}/pause").status_code == 404
    assert admin.post(f"{base}/quality/{person.id}/promote").status_code == 404


def test_gold_is_made_of_a_comparison_and_retired(house, cast, admin, base, make_with):
    with house.store() as s:
        make = make_with(s)
        policy = make.policy(cast.project)
        pair = make.pair(cast.project, policy)
        foreign = make.pair(cast.other, make.policy(cast.other))
    assert str(pair.id) in admin.get(f"{base}/gold", params={"comparison": str(pair.id)}).text
    assert admin.get(f"{base}/gold", params={"comparison": "no id"}).status_code == 422
    assert admin.get(f"{base}/gold", params={"comparison": str(foreign.id)}).status_code == 404
    form = {"comparison_id": str(pair.id), "best": 1, "explanation": "The second is right."}
    assert admin.post(f"{base}/gold", data=form | {"best": 2}, headers=FETCHING).status_code == 422
    assert admin.post(f"{base}/gold", data=form | {"project_id": "1"}, headers=FETCHING).status_code == 422
    assert admin.post(f"{base}/gold", data=form | {"comparison_id": str(foreign.id)}).status_code == 404
    assert admin.post(f"{base}/gold", data=form).status_code == 303
    with house.store() as s:
        [made] = gold.listed(s, cast.project.id)
    assert (made.tiers, made.qualification) == ([[1], [0]], False)
    assert admin.post(f"{base}/gold/{made.comparison_id}/retire").status_code == 303
    assert "retired" in admin.get(f"{base}/gold").text


def test_settings_are_typed_and_refused_where_the_admin_is_looking(house, cast, admin, base):
    for values in ({"votes_wanted": 0}, {"mode": "guess"}, {"cap": "many"}, {"mode": "rank", "answers": 2}):
        answer = admin.post(f"{base}/settings", data=settings(house, cast, **values), headers=FETCHING)
        assert answer.status_code == 422
        assert 'class="notice' in answer.text
        assert "<html" not in answer.text
    extra = settings(house, cast) | {"salt": "mine"}
    assert admin.post(f"{base}/settings", data=extra, headers=FETCHING).status_code == 422
    changed = admin.post(f"{base}/settings", data=settings(house, cast, mode="rank", cap=9))
    assert "6 waiting comparisons" in changed.text
    assert 'value="rank" checked' in changed.text
    assert "nothing was changed" in admin.post(f"{base}/settings", data=settings(house, cast)).text
