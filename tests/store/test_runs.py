"""The run queue."""

import uuid

import pytest
from sqlalchemy import text, update

from app.core.errors import Conflict, Invalid, NotFound
from app.core.records import Progress, RunError
from app.core.vocabulary import CheckpointKind, RunKind, RunStatus
from app.store import checkpoints, prompts, runs
from app.store.models import Run, Snapshot

ERROR = RunError(kind="memory", message="Out of memory.", mend="Take a smaller batch.")


@pytest.fixture
def project(make):
    project = make.project(heldout_share=0.5)
    make.policy(project, promote=True)
    return project


@pytest.fixture
def judged(session, make, project):
    """A project in which enough pairs on both sides of the split are judged."""
    person = make.person(project)
    policy = checkpoints.policies(session, project.id)[0]
    for i in range(60):
        make.pair(project, policy, make.prompt(project, f"question {i}"))
        make.judged(project, person)
    return project


def sft(session, project):
    question = [{"role": "user", "content": "Hello?"}]
    prompts.add_demonstrations(session, project, [(question, "Good day.")], "test")
    return runs.enqueue(session, project.id, RunKind.SFT, None)


def lose(session, run):
    session.execute(
        update(Run).where(Run.id == run.id).values(lease_expires_at=text("now() - interval '1 second'")),
        execution_options={"synchronize_session": False},
    )


def test_the_oldest_run_that_may_start_is_claimed_once(session, project):
    first, second = sft(session, project), sft(session, project)
    assert (first.number, second.number) == (1, 2)
    taken = runs.claim_run(session, "w1")
    assert (taken.id, taken.attempt, taken.status, taken.worker_id) == (first.id, 1, RunStatus.RUNNING, "w1")
    assert runs.claim_run(session, "w2").id == second.id
    assert runs.claim_run(session, "w3") is None


def test_a_lost_lease_goes_to_the_next_worker_and_the_zombie_updates_nothing(session, project):
    sft(session, project)
    lost = runs.claim_run(session, "dead")
    attempt = lost.attempt
    lose(session, lost)
    taken = runs.claim_run(session, "alive")
    assert (taken.id, taken.attempt) == (lost.id, 2)
    progress = Progress(step=9, total=10, phase="train", seconds_left=1.0, time=0.0)
    assert not runs.heartbeat(session, taken.id, attempt, progress)
    assert not runs.append_metrics(session, taken.id, attempt, [{"step": 1, "loss": 1.0}])
    assert not runs.append_samples(session, taken.id, attempt, [{"step": 1, "prompt_id": "p", "completion": "c"}])
    assert not runs.finish(session, taken.id, attempt, RunStatus.FINISHED)
    assert not runs.release(session, taken.id, attempt)
    now = runs.run(session, project.id, taken.id)
    assert (now.status, now.step, runs.metrics_after(session, now.id)) == (RunStatus.RUNNING, 0, [])


def test_a_heartbeat_renews_the_lease_and_stores_progress(session, project):
    sft(session, project)
    taken = runs.claim_run(session, "w")
    lose(session, taken)
    assert runs.heartbeat(session, taken.id, 1, Progress(step=3, total=7, phase="train", seconds_left=4.5, time=0.0))
    now = runs.run(session, project.id, taken.id)
    assert (now.step, now.total, now.phase, now.seconds_left) == (3, 7, "train", 4.5)
    assert runs.claim_run(session, "other") is None


def test_steps_logged_again_after_a_resume_are_there_once_and_those_past_it_are_gone(session, project):
    sft(session, project)
    first = runs.claim_run(session, "w1")
    rows = [{"step": step, "phase": "train", "time": 0.0, "loss": 1.0} for step in range(1, 8)]
    assert runs.append_metrics(session, first.id, 1, rows)
    seen = runs.metrics_after(session, first.id)[-1].id
    lose(session, first)
    runs.claim_run(session, "w2")
    # Restored at step 3: it logs 4 again, and 5 to 7 are no longer true.
    assert runs.append_metrics(session, first.id, 2, [{"step": 4, "phase": "train", "time": 1.0, "loss": 0.5}])
    logged = runs.metrics_after(session, first.id)
    assert sorted((row.step, row.values["loss"]) for row in logged) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.5)]
    assert [row.step for row in runs.metrics_after(session, first.id, seen)] == [4]


def test_reading_the_whole_file_again_doubles_nothing(session, project):
    sft(session, project)
    taken = runs.claim_run(session, "w1")
    rows = [{"step": step, "phase": "train", "loss": float(step)} for step in (1, 2)]
    lines = [{"step": 1, "prompt_id": "p", "completion": "c\x00", "reward": 0.5}]
    for _ in range(2):
        assert runs.append_metrics(session, taken.id, 1, [*rows, {"step": 2, "phase": "eval", "loss": float("nan")}])
        assert runs.append_samples(session, taken.id, 1, lines)
    values = [(row.phase, row.step, row.values) for row in runs.metrics_after(session, taken.id)]
    assert values == [("train", 1, {"loss": 1.0}), ("train", 2, {"loss": 2.0}), ("eval", 2, {"loss": None})]
    assert [(row.completion, row.reward) for row in runs.samples(session, taken.id)] == [("c\ufffd", 0.5)]


def test_ppo_waits_for_its_reward_model_and_takes_it(session, judged):
    reward, ppo = runs.enqueue_reward_then_ppo(session, judged.id, None, seed=3)
    assert reward.snapshot_id is not None
    assert runs.claim_run(session, "w").id == reward.id
    assert runs.claim_run(session, "w") is None
    model = checkpoints.register(
        session, judged.id, CheckpointKind.REWARD_MODEL, reward.id, None, "f", {"w": "00"}, {"heldout_accuracy": 0.8}
    )
    assert runs.finish(session, reward.id, 1, RunStatus.FINISHED, {"heldout_accuracy": 0.8})
    taken = runs.claim_run(session, "w")
    assert (taken.id, taken.reward_model_id, taken.seed) == (ppo.id, model.id, 3)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [(RunStatus.FAILED, ERROR, "failed"), (RunStatus.CANCELLED, None, "was cancelled")],
)
def test_a_follower_is_cancelled_with_the_run_it_waited_for_and_says_why(session, judged, status, error, words):
    reward, ppo = runs.enqueue_reward_then_ppo(session, judged.id, None)
    runs.claim_run(session, "w")
    runs.finish(session, reward.id, 1, status, error=error)
    now = runs.run(session, judged.id, ppo.id)
    assert now.status == RunStatus.CANCELLED
    assert now.error["message"] == f"This run waited for run {reward.number}, which {words}."


def test_a_follower_goes_on_once_the_run_it_waited_for_was_resumed_and_finished(session, judged):
    reward, ppo = runs.enqueue_reward_then_ppo(session, judged.id, None)
    runs.claim_run(session, "w")
    runs.finish(session, reward.id, 1, RunStatus.FAILED, error=ERROR)
    with pytest.raises(Conflict, match="has not made its reward model"):
        runs.resume(session, judged.id, ppo.id, None)
    runs.resume(session, judged.id, reward.id, None)
    runs.resume(session, judged.id, ppo.id, None)
    assert runs.claim_run(session, "w").id == reward.id
    model = checkpoints.register(session, judged.id, CheckpointKind.REWARD_MODEL, reward.id, None, "f", {}, {})
    runs.finish(session, reward.id, 2, RunStatus.FINISHED)
    assert runs.claim_run(session, "w").reward_model_id == model.id


def test_cancelling_ends_a_waiting_run_at_once_and_asks_a_running_one(session, project):
    running, waiting = sft(session, project), sft(session, project)
    runs.claim_run(session, "w")
    assert runs.request_cancel(session, project.id, waiting.id, None).status == RunStatus.CANCELLED
    assert runs.request_cancel(session, project.id, running.id, None).status == RunStatus.RUNNING
    assert runs.cancel_requested(session, running.id)
    assert runs.finish(session, running.id, 1, RunStatus.CANCELLED)
    with pytest.raises(Conflict, match="already ended"):
        runs.request_cancel(session, project.id, running.id, None)
    assert runs.resume(session, project.id, running.id, None).status == RunStatus.QUEUED
    again = runs.claim_run(session, "w")
    assert (again.id, again.attempt) == (running.id, 2)
    assert not runs.cancel_requested(session, running.id)


def test_a_paused_run_waits_for_a_person(session, project):
    run = sft(session, project)
    runs.claim_run(session, "w")
    runs.finish(session, run.id, 1, RunStatus.PAUSED, error=ERROR)
    assert runs.claim_run(session, "w") is None
    runs.resume(session, project.id, run.id, None)
    assert runs.claim_run(session, "w").attempt == 2


def test_too_few_judgments_are_refused_with_how_many_are_missing(session, make, project):
    with pytest.raises(Invalid) as refusal:
        runs.enqueue(session, project.id, RunKind.REWARD, None)
    assert refusal.value.message == "0 judged pairs cannot teach a reward model; 20 can at the least."
    assert refusal.value.mend == "Judge 20 more."


def test_dpo_freezes_the_judgments_and_starts_from_a_policy(session, judged):
    run = runs.enqueue(session, judged.id, RunKind.DPO, None, {"beta": 0.2}, seed=4, reward_model_id=None)
    assert (run.kind, run.policy_id, run.reward_model_id) == (RunKind.DPO, judged.current_policy_id, None)
    assert (run.config["beta"], run.config["loss"], run.seed) == (0.2, "dpo", 4)
    reward = runs.enqueue(session, judged.id, RunKind.REWARD, None)
    frozen = [session.get(Snapshot, one.snapshot_id).sha256 for one in (run, reward)]
    assert frozen[0] == frozen[1], "the same judgments as a reward model would get"
    assert runs.claim_run(session, "w").id == run.id


def test_dpo_on_too_few_judgments_is_refused(session, project):
    with pytest.raises(Invalid) as refusal:
        runs.enqueue(session, project.id, RunKind.DPO, None)
    assert refusal.value.message == "0 judged pairs cannot teach a policy; 20 can at the least."


def test_judgments_are_used_by_whatever_learnt_from_them_last(session, make, judged):
    assert runs.learnt_from(session, judged.id) == 0
    first = runs.enqueue(session, judged.id, RunKind.REWARD, None)
    assert runs.learnt_from(session, judged.id) == 0, "it has made nothing yet"
    checkpoints.register(session, judged.id, CheckpointKind.REWARD_MODEL, first.id, None, "f", {}, {})
    used = runs.learnt_from(session, judged.id)
    assert used == session.get(Snapshot, first.snapshot_id).train > 0
    person = make.person(judged)
    policy = checkpoints.policies(session, judged.id)[0]
    for _ in range(8):
        make.pair(judged, policy)
        make.judged(judged, person)
    second = runs.enqueue(session, judged.id, RunKind.DPO, None)
    checkpoints.register(session, judged.id, CheckpointKind.POLICY, second.id, None, "g", {}, {})
    assert runs.learnt_from(session, judged.id) == session.get(Snapshot, second.snapshot_id).train > used


def test_a_worker_at_work_is_seen_and_a_dead_one_is_not(session, project):
    sft(session, project)
    assert not runs.worker_is_busy(session)
    taken = runs.claim_run(session, "w")
    assert runs.worker_is_busy(session)
    lose(session, taken)
    assert not runs.worker_is_busy(session)


def test_a_reward_model_needs_a_judged_held_out_pair(session, make):
    project = make.project(heldout_share=1e-9)
    person, policy = make.person(project), make.policy(project, promote=True)
    for _ in range(20):
        make.pair(project, policy)
        make.judged(project, person)
    with pytest.raises(Invalid, match="held-out"):
        runs.enqueue(session, project.id, RunKind.REWARD, None)


def test_bases_and_settings_are_checked_before_anything_is_queued(session, make, project):
    elsewhere = make.policy(make.project())
    cases = [
        (RunKind.SFT, {}, Invalid, "no demonstrations"),
        (RunKind.PPO, {}, Invalid, "no reward model"),
        (RunKind.PPO, {"policy_id": elsewhere.id}, NotFound, "no such model"),
        (
            RunKind.PPO,
            {"reward_model_id": checkpoints.policies(session, project.id)[0].id},
            Invalid,
            "not a reward model",
        ),
        (RunKind.REWARD, {"config": {"nonsense": 1}}, Invalid, "'nonsense'"),
        (RunKind.REWARD, {"seed": -1}, Invalid, "seed"),
    ]
    for kind, fields, error, words in cases:
        with pytest.raises(error, match=words):
            runs.enqueue(session, project.id, kind, None, **fields)
    with pytest.raises(Invalid, match="no policy"):
        runs.enqueue(session, make.project().id, RunKind.REWARD, None)
    assert runs.runs_of(session, project.id) == []


def test_a_run_of_another_project_does_not_exist_here(session, make, project):
    run = sft(session, project)
    other = make.project()
    for act in (
        runs.run,
        lambda s, p, r: runs.request_cancel(s, p, r, None),
        lambda s, p, r: runs.resume(s, p, r, None),
    ):
        with pytest.raises(NotFound):
            act(session, other.id, run.id)
        with pytest.raises(NotFound):
            act(session, project.id, uuid.uuid4())
