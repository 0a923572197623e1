"""Starting runs from the browser, and what their pages say."""

import pytest
from sqlalchemy import select

from app.core.configs import CONFIGS
from app.core.errors import Invalid
from app.core.records import Progress
from app.core.vocabulary import CheckpointKind, RunKind, RunStatus
from app.store import checkpoints, runs
from app.store.models import Run
from app.web.forms import config_of, settings_of
from app.web.results import results
from tests.web.conftest import FETCHING, Cast, House
from tests.web.reading import words_of


@pytest.fixture
def base(cast: Cast) -> str:
    """The project's address."""
    return f"/p/{cast.project.slug}"


@pytest.fixture
def reward_model(house: House, cast: Cast, make_with):
    """A reward model, so that PPO can be started."""
    with house.store() as s:
        return make_with(s).reward_model(cast.project)


@pytest.mark.parametrize("kind", list(RunKind))
def test_the_form_shows_every_field_of_the_configuration_with_its_sentence(admin, base, kind):
    page = admin.get(f"{base}/runs/start/{kind.value}").text
    basic, advanced = settings_of(kind)
    assert {one.name for one in basic + advanced} == set(CONFIGS[kind].model_fields)
    for one in basic + advanced:
        assert f'name="set.{one.name}"' in page
        assert len(one.description.split()) >= 2, one.name
    assert basic, "somebody new sees some settings without unfolding"


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (
            RunKind.PPO,
            {"set.batch_size": "10", "set.minibatches": "3"},
            "Batch_size 10 is not divisible",
        ),
        (RunKind.REWARD, {"set.kind": "probe", "set.pooling": "last"}, "A probe reads the whole answer"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_in_words(kind, given, told):
    with pytest.raises(Invalid, match=told):
        config_of(kind, given)


def test_a_run_is_started_with_what_was_filled_in_and_defaults_elsewhere(admin, base, house, cast, reward_model):
    form = {
        "kind": "ppo",
        "seed": "7",
        "policy_id": "",
        "reward_model_id": str(reward_model.id),
        "set.beta": "0.3",
        "set.gamma": "",
    }
    answer = admin.post(f"{base}/runs", data=form)
    assert answer.status_code == 303
    with house.store() as s:
        run = s.scalars(select(Run)).one()
    assert answer.headers["location"] == f"{base}/runs/{run.id}"
    assert (run.kind, run.seed, run.config["beta"], run.config["gamma"]) == (RunKind.PPO, 7, 0.3, 1.0)
    assert (run.policy_id, run.reward_model_id) == (cast.policy.id, reward_model.id)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"set.beta": "-1"}, "Beta"),
        ({"set.no_such": "1"}, "no such"),
        ({"beta": "1"}, "beta"),
        ({"seed": "x"}, "Seed"),
        ({"kind": "grpo"}, "Kind"),
    ],
)
def test_an_impossible_setting_is_named_and_nothing_starts(admin, base, house, reward_model, wrong, told):
    answer = admin.post(f"{base}/runs", data={"kind": "ppo"} | wrong, headers=FETCHING)
    assert answer.status_code == 422
    assert told in words_of(answer.text)
    with house.store() as s:
        assert s.scalars(select(Run)).all() == []


def test_training_on_too_few_judgments_says_how_many_are_missing(admin, base, house):
    answer = admin.post(f"{base}/train", headers=FETCHING)
    assert answer.status_code == 422
    assert "Judge 20 more" in words_of(answer.text)
    page = admin.post(f"{base}/train")
    assert "cannot teach a reward model" in words_of(page.text)
    with house.store() as s:
        assert s.scalars(select(Run)).all() == []


def test_htmx_is_led_on_by_its_own_header(admin, base, reward_model):
    answer = admin.post(f"{base}/runs", data={"kind": "ppo"}, headers=FETCHING | {"HX-Request": "true"})
    assert answer.status_code == 200
    assert answer.headers["hx-redirect"].startswith(f"{base}/runs/")


def test_a_run_is_shown_live_then_with_its_result(admin, base, house, cast, reward_model):
    admin.post(f"{base}/runs", data={"kind": "ppo"})
    with house.store() as s:
        run = runs.claim_run(s, "test")
        assert run is not None
        runs.heartbeat(s, run.id, run.attempt, Progress(step=3, total=24, phase="rollout", seconds_left=84, time=0))
        runs.append_metrics(s, run.id, run.attempt, [{"step": 1, "phase": "ppo", "time": 0, "objective/kl": 0.5}])
    page = words_of(admin.get(f"{base}/runs/{run.id}").text)
    assert "Training, step 3 of 24, about 84 s left" in page
    assert "Now: rollout" in page
    rows = admin.get(f"{base}/runs/{run.id}/metrics").json()
    assert rows["live"] is True
    assert rows["rows"][0]["values"]["objective/kl"] == 0.5
    assert admin.get(f"{base}/runs/{run.id}/metrics?after={rows['rows'][0]['id']}").json()["rows"] == []
    assert admin.get(f"{base}/runs/{run.id}/live?status=queued").headers["hx-refresh"] == "true"
    with house.store() as s:
        metrics = {"reward": 0.84, "kl": 3.1}
        checkpoints.register(s, cast.project.id, CheckpointKind.POLICY, run.id, cast.policy.id, "made", {}, metrics)
        runs.finish(s, run.id, run.attempt, RunStatus.FINISHED, metrics)
    page = words_of(admin.get(f"{base}/runs/{run.id}").text)
    assert "Done" in page
    assert "KL 3.1 nats per answer" in page
    assert "Promote v2" in words_of(admin.get(base).text)


def test_promoting_and_rolling_back_move_the_pointer(admin, base, house, cast, make_with):
    with house.store() as s:
        second = make_with(s).policy(cast.project)
    assert admin.post(f"{base}/policies/{second.id}/promote").headers["location"] == base
    page = words_of(admin.get(f"{base}/policies").text)
    assert "v2 current" in page
    assert "Roll back to v1" in page
    again = admin.post(f"{base}/policies/{second.id}/promote", headers=FETCHING)
    assert again.status_code == 409
    admin.post(f"{base}/policies/rollback")
    page = words_of(admin.get(f"{base}/policies").text)
    assert "v1 current" in page
    assert "Roll back" not in page


def test_the_roll_back_button_names_where_it_leads_each_time(admin, base, house, cast, make_with):
    with house.store() as s:
        make = make_with(s)
        for _ in range(2):
            make.policy(cast.project, promote=True)
    for earlier in ("v2", "v1"):
        assert f"Roll back to {earlier}" in words_of(admin.get(f"{base}/policies").text)
        assert admin.post(f"{base}/policies/rollback").status_code == 303
        assert f"{earlier} current" in words_of(admin.get(f"{base}/policies").text)
    assert "Roll back" not in words_of(admin.get(f"{base}/policies").text)


def test_a_run_that_failed_says_why_and_can_be_resumed(admin, base, house, cast, reward_model):
    admin.post(f"{base}/runs", data={"kind": "ppo"})
    with house.store() as s:
        run = runs.claim_run(s, "test")
        assert run is not None
        error = {"kind": "disk", "message": "The disk is full.", "mend": "Free two gigabytes, then resume."}
        runs.finish(s, run.id, run.attempt, RunStatus.FAILED, {}, runs.RunError(**error))
    page = words_of(admin.get(f"{base}/runs/{run.id}").text)
    assert "The disk is full." in page
    assert "Free two gigabytes, then resume." in page
    assert admin.post(f"{base}/runs/{run.id}/cancel", headers=FETCHING).status_code == 409
    assert admin.post(f"{base}/runs/{run.id}/resume").status_code == 303
    assert "Waiting for the worker" in words_of(admin.get(f"{base}/runs/{run.id}").text)


@pytest.fixture
def judged(house: House, cast: Cast, make_with):
    """Judgments enough on both sides of the split for something to be learnt from them."""
    with house.store() as s:
        make = make_with(s)
        project = s.merge(cast.project)
        for _ in range(144):
            make.pair(project, cast.policy)
        for _ in range(150):
            make.judged(project, cast.people["annotator"])


def test_dpo_is_started_from_its_form_and_its_policy_promoted_from_the_loop(admin, base, house, cast, judged):
    page = words_of(admin.get(f"{base}/runs/start/dpo").text)
    assert "DPO learns a policy straight from every counted judgment" in page
    assert "Reward model" not in page, "it needs none"
    form = {"kind": "dpo", "seed": "5", "policy_id": "", "set.beta": "0.2", "set.loss": "ipo", "set.epochs": ""}
    answer = admin.post(f"{base}/runs", data=form)
    assert answer.status_code == 303
    with house.store() as s:
        run = runs.claim_run(s, "test")
        assert run is not None
        assert (run.kind, run.policy_id, run.reward_model_id) == (RunKind.DPO, cast.policy.id, None)
        assert (run.config["beta"], run.config["loss"]) == (0.2, "ipo")
        assert run.snapshot_id is not None
        row = {"step": 1, "phase": "train", "time": 0, "loss": 0.69, "rewards/margins": 0.01}
        runs.append_metrics(s, run.id, run.attempt, [row])
    page = words_of(admin.get(f"{base}/runs/{run.id}").text)
    assert "DPO 1" in page
    assert "150 judgments" in page
    assert "Reward of preferred answers" in page
    assert "Watch DPO 1" in words_of(admin.get(base).text)
    with house.store() as s:
        metrics = {"heldout_accuracy": 0.7, "heldout_low": 0.4, "heldout_high": 0.9, "heldout_n": 10, "kl": 2.1}
        checkpoints.register(s, cast.project.id, CheckpointKind.POLICY, run.id, cast.policy.id, "made", {}, metrics)
        runs.finish(s, run.id, run.attempt, RunStatus.FINISHED, metrics)
    page = words_of(admin.get(f"{base}/runs/{run.id}").text)
    assert "70.0 % interval 40.0 % to 90.0 % on 10 held-out pairs" in page
    assert "Compare and promote" in page
    page = words_of(admin.get(base).text)
    assert "Promote v2" in page
    assert "It ended at KL 2.1." in page
    assert "v1" in words_of(admin.get(f"{base}/policies").text)
    with house.store() as s:
        [made] = [one for one in checkpoints.policies(s, cast.project.id) if one.name == "v2"]
    assert admin.post(f"{base}/policies/{made.id}/promote").status_code == 303
    # What DPO learnt from is used, though no reward model was made.
    assert "0 new since the last training" in words_of(admin.get(base).text)


def test_dpo_on_too_few_judgments_says_how_many_are_missing(admin, base, house):
    answer = admin.post(f"{base}/runs", data={"kind": "dpo"}, headers=FETCHING)
    assert answer.status_code == 422
    assert "0 judged pairs cannot teach a policy" in words_of(answer.text)
    assert "Judge 20 more" in words_of(answer.text)


def test_the_runs_page_and_the_loop_lead_to_dpo(admin, base, judged):
    assert f'href="{base}/runs/start/dpo"' in admin.get(f"{base}/runs").text


def test_a_dpo_policy_that_cuts_its_answers_is_marked():
    metrics = {"heldout_accuracy": 0.7, "kl": 2.1, "length": 90.0, "truncated_share": 0.4, "pairs_train": 250}
    names = [(one.name, one.value, one.tone) for one in results(RunKind.DPO, metrics)]
    assert ("KL", "2.1", "") in names
    assert ("Cut-off answers", "40.0 %", "warning") in names
    assert ("Learnt from", "250", "") in names


def test_a_reward_models_accuracy_stands_beside_interval_and_floor():
    metrics = {
        "heldout_accuracy": 0.6,
        "heldout_low": 0.51,
        "heldout_high": 0.68,
        "heldout_n": 120,
        "longer_wins": 0.55,
        "train_accuracy": 0.75,
    }
    held_out, floor, own = results(RunKind.REWARD, metrics)
    assert held_out.value == "60.0 %"
    assert "interval 51.0 % to 68.0 % on 120 held-out pairs" in held_out.meaning
    assert "reaches down to the floor" in held_out.meaning
    assert (held_out.tone, floor.value, own.tone) == ("warning", "55.0 %", "warning")
