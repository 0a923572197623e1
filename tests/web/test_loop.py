"""The one next step, for each state of a project."""

import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from app.core.vocabulary import CheckpointKind, RunKind, RunStatus, Verdict
from app.store import accounts, checkpoints, runs
from app.store.judgments import Summary
from app.web.loop import State, next_step
from tests.web.conftest import Cast, House


def summary(train: int = 0, heldout: int = 3, agreement: float | None = None) -> Summary:
    return Summary(
        pairs=train + heldout,
        train=train,
        heldout=heldout,
        ties=0,
        both_bad=0,
        surplus=0,
        people=2,
        agreement=agreement,
        agreement_pairs=40 if agreement else 0,
    )


def run(kind: RunKind, status: RunStatus, **more: Any) -> Any:
    return SimpleNamespace(id=uuid.uuid4(), kind=kind, number=7, status=status, seconds_left=None, error=None, **more)


def model(number: int, **metrics: float) -> Any:
    return SimpleNamespace(id=uuid.UUID(int=number), number=number, name=f"v{number}", metrics=metrics)


V1, V2 = model(1), model(2, reward=0.8, kl=3.1)


def state(**given: Any) -> State:
    values: dict[str, Any] = {
        "base": "/p/a",
        "ready": 12,
        "summary": summary(),
        "runs": [],
        "policies": [V1],
        "reward_models": [],
        "current": V1,
        "promoted": frozenset({V1.id}),
        "learnt_from": 0,
        "heldout_share": 0.1,
        "may_train": True,
    }
    return State(**(values | given))


@pytest.mark.parametrize(
    ("given", "action", "where"),
    [
        ({}, "Judge the first pairs", "/p/a/judge"),
        ({"summary": summary(5)}, "Judge more pairs", "/p/a/judge"),
        ({"summary": summary(60)}, "Judge more pairs", "/p/a/judge"),
        ({"summary": summary(60, heldout=0)}, "Judge more pairs", "/p/a/judge"),
        ({"summary": summary(100)}, "Train reward model, then PPO", "/p/a/train"),
        ({"summary": summary(150), "reward_models": [model(1)], "learnt_from": 100}, "Judge more pairs", "/p/a/judge"),
        (
            {"summary": summary(250), "reward_models": [model(1)], "learnt_from": 100},
            "Train reward model, then PPO",
            "/p/a/train",
        ),
        ({"policies": [V2, V1]}, "Promote v2", f"/p/a/policies/{V2.id}/promote"),
        (
            {"policies": [V2, V1], "current": V2, "promoted": frozenset({V1.id, V2.id})},
            "Judge the first pairs",
            "/p/a/judge",
        ),
        ({"summary": summary(100), "may_train": False}, "See the data", "/p/a/data"),
    ],
)
def test_the_next_step_follows_from_the_numbers(given, action, where):
    step = next_step(state(**given))
    assert step.action == action
    assert (step.href or step.post) == where


def test_beside_training_a_reward_model_stands_dpo():
    step = next_step(state(summary=summary(100)))
    assert [(aside.action, aside.href) for aside in step.asides] == [("DPO instead", "/p/a/runs/start/dpo")]


def test_a_run_of_dpo_is_watched_at_the_policy():
    step = next_step(state(runs=[run(RunKind.DPO, RunStatus.RUNNING)]))
    assert (step.title, step.here) == ("DPO 7 is training.", "policy")


def test_what_is_missing_is_counted():
    assert next_step(state(summary=summary(5))).title == "15 more judgments until a first training."


def test_agreement_stands_beside_what_people_usually_reach():
    why = next_step(state(summary=summary(120, agreement=0.741))).why
    assert "agreement 74.1 % (people usually reach 73 to 77 %)" in why


def test_a_run_that_trains_comes_first_and_judging_goes_on():
    training = run(RunKind.PPO, RunStatus.RUNNING)
    training.seconds_left = 372.0
    step = next_step(state(runs=[training], policies=[V2, V1]))
    assert step.title == "PPO 7 is training."
    assert step.why.startswith("6 min left")
    assert [aside.href for aside in step.asides] == ["/p/a/judge"]


def test_a_run_that_failed_is_named_with_its_mend():
    failed = run(RunKind.REWARD, RunStatus.FAILED)
    failed.error = {"kind": "memory", "message": "The trainer ran out of memory.", "mend": "Lower the batch size."}
    step = next_step(state(runs=[failed], summary=summary(200)))
    assert step.title == "Reward model 7 stopped."
    assert "ran out of memory. Lower the batch size." in step.why
    assert [(aside.action, aside.post) for aside in step.asides] == [("Judge", ""), ("Train again", "/p/a/train")]
    assert [aside.action for aside in next_step(state(runs=[failed])).asides] == ["Judge"]


def test_after_a_roll_back_the_loop_goes_on_to_the_next_training():
    rolled_back = state(policies=[V2, V1], promoted=frozenset({V1.id, V2.id}), summary=summary(150))
    assert next_step(rolled_back).action == "Train reward model, then PPO"


def test_beside_a_candidate_stands_another_training():
    step = next_step(state(policies=[V2, V1], summary=summary(150)))
    assert step.action == "Promote v2"
    assert [aside.action for aside in step.asides] == ["Look at it first", "Train again"]


def test_the_held_out_share_is_the_projects_own():
    assert next_step(state(summary=summary(60, heldout=0), heldout_share=0.25)).why.endswith("About 25 % do.")


def test_ties_and_both_bad_are_not_new_again_after_a_training(house: House, cast: Cast, admin, make_with):
    """What the reward model was given counts as used, whether or not it has a better side."""
    with house.store() as s:
        make = make_with(s)
        cast.project = s.merge(cast.project)
        for _ in range(114):
            make.pair(cast.project, cast.policy)
        for i in range(120):
            make.judged(cast.project, cast.people["annotator"], (Verdict.TIE, Verdict.LEFT)[i % 2])
        queued = runs.enqueue(s, cast.project.id, RunKind.REWARD, None)
        kind, metrics = CheckpointKind.REWARD_MODEL, {"pairs_train": 50}
        checkpoints.register(s, cast.project.id, kind, queued.id, None, "made", {}, metrics)
        runs.request_cancel(s, cast.project.id, queued.id, None)
    assert "0 new since the last training" in admin.get(f"/p/{cast.project.slug}").text


def test_a_first_policy_from_elsewhere_is_not_called_the_starter(house: House, cast: Cast, admin):
    page = admin.get(f"/p/{cast.project.slug}").text
    assert "brought from elsewhere" in page
    assert "starter" not in page


def test_bringing_a_model_is_not_promised_in_seconds(open_house, make_with):
    house = open_house(policy="some/model")
    with house.store() as s:
        token = accounts.issue_setup_token(s)
        owner = accounts.create_owner(s, token, "olga", "a long enough password")
    page = house.browser(owner).get("/preparing").text
    assert "bringing the model" in page
    assert "few seconds" not in page
    assert "fine-tuning" not in page


def test_the_home_page_offers_one_primary_action(house: House, cast: Cast, admin):
    page = admin.get(f"/p/{cast.project.slug}").text
    assert page.count("primary") == 1
    assert "Judge the first pairs" in page
    assert admin.get(f"/p/{cast.project.slug}/loop").text.startswith('<div id="loop"')


def test_before_there_is_a_policy_every_door_leads_to_the_preparation(house: House, cast: Cast, make_with):
    with house.store() as s:
        bare = make_with(s).project()
        person = make_with(s).person(bare)
        admin = make_with(s).person(bare, "admin")
    for who, path in ((admin, ""), (admin, "/judge"), (person, "/judge")):
        assert "Preparing the first policy" in house.browser(who).get(f"/p/{bare.slug}{path}").text
    fragment = house.browser(person).get(f"/p/{bare.slug}/preparing")
    assert fragment.text.startswith('<div id="preparing"')
    ready = house.browser(cast.people["annotator"]).get(f"/p/{cast.project.slug}/preparing")
    assert ready.headers["hx-refresh"] == "true"


def test_whoever_waits_for_the_first_project_is_led_to_it_once_it_is_there(house: House, cast: Cast) -> None:
    """The owner may be quicker than the worker that makes the project."""
    member = house.browser(cast.people["admin"])
    assert member.get("/preparing", headers={"Sec-Fetch-Mode": "cors"}).headers["HX-Refresh"] == "true"
    page = member.get("/preparing", headers={"Sec-Fetch-Mode": "navigate"})
    assert (page.status_code, page.headers["location"]) == (303, "/")
