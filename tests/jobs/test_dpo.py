"""A DPO run through the worker, with the real trainer on a tiny policy: from judgments to a policy with lineage."""

import json

from app.core.folders import verify_folder, write_folder
from app.core.records import RunSpec
from app.core.vocabulary import CheckpointKind, RunKind, RunStatus, Verdict
from app.jobs import launch
from app.policy.starter import make_starter
from app.settings import Settings
from app.store import checkpoints, prompts, runs
from tests.jobs.conftest import Work

QUICK = {
    "epochs": 1,
    "batch_size": 8,
    "evaluation_prompts": 2,
    "sample_prompts": 1,
    "max_tokens": 4,
    "eval_every": 100,
    "sample_every": 100,
    "threads": 1,
}


def test_judgments_become_a_policy_whose_parent_is_the_one_it_started_from(tmp_path, sessions, make_with):
    settings = Settings(home=tmp_path / "home", training_threads=1).make_home()
    files = write_folder(settings.checkpoints_dir / "start", lambda folder: make_starter(folder, "tiny"))
    with sessions.begin() as s:
        make = make_with(s)
        project = make.project(heldout_share=0.3)
        person = make.person(project)
        start = checkpoints.register(s, project.id, CheckpointKind.POLICY, None, None, "start", files, {})
        checkpoints.promote(s, project.id, start.id, None)
        prompts.add_demonstrations(s, project, [([{"role": "user", "content": "Hello?"}], "Good day.")], "test")
        for n in range(60):
            make.pair(project, start, make.prompt(project, f"Where is order {n}?"))
            make.judged(project, person, (Verdict.LEFT, Verdict.RIGHT, Verdict.TIE)[n % 3])
    work = Work(settings, sessions, project)
    run = work.queue(RunKind.DPO, config=QUICK, seed=7)
    work.through(work.claim(), seconds=120)

    seen = work.see(run)
    assert seen.status == RunStatus.FINISHED, seen.error
    directory = launch.run_directory(settings, run)
    spec = RunSpec.model_validate_json(directory.spec.read_text())
    assert set(spec.data_sha256) == {"preferences.jsonl", "prompts.jsonl", "demonstrations.jsonl"}
    assert spec.snapshot_sha256 == spec.data_sha256["preferences.jsonl"]
    assert (spec.policy, spec.reward_model) == ("../../checkpoints/start", None)
    lines = [json.loads(line) for line in directory.preferences.read_text().splitlines()]
    strict = [line for line in lines if line["split"] == "train" and len(line["tiers"]) == 2]
    assert seen.metrics["pairs_train"] == len(strict)
    assert seen.metrics["left_out_tied"] == 20
    with work.sessions() as s:
        made, first = checkpoints.policies(s, project.id)
        assert (made.name, made.parent_id, made.run_id) == ("v2", first.id, run.id)
        assert verify_folder(settings.checkpoints_dir / made.folder_name) == made.files
        logged = runs.metrics_after(s, run.id)
        assert [row.step for row in logged if row.phase == "train"] == list(range(1, seen.total + 1))
        assert {row.step for row in runs.samples(s, run.id)} == {0, seen.total}
        assert checkpoints.promote(s, project.id, made.id, None).checkpoint_id == made.id
