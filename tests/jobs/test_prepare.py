from concurrent.futures import ThreadPoolExecutor

import pytest

from app.core.errors import Invalid
from app.core.vocabulary import RunKind, RunStatus
from app.jobs import prepare
from app.settings import Settings
from app.store import checkpoints, projects, prompts, runs


@pytest.fixture
def tiny(tmp_path):
    return Settings(home=tmp_path / "home", starter="tiny", pool_target=9, heldout_share=0.25).make_home()


def test_the_first_start_makes_one_project_with_texts_on_both_sides_and_a_run_for_its_policy(tiny, sessions):
    prepare.first_start(tiny, sessions)
    with sessions() as s:
        [project] = projects.all_projects(s)
        assert (project.slug, project.name, project.pool_target) == ("support", "Support replies", 9)
        counts = prompts.counts(s, project.id)
        # 400 letters with an answer and 300 without; some customers write the same.
        assert counts.demonstrations == 400
        assert 650 < counts.train + counts.heldout <= 700
        assert 0.18 < counts.heldout / (counts.train + counts.heldout) < 0.32
        [run] = runs.runs_of(s, project.id)
        assert (run.kind, run.status, run.policy_id) == (RunKind.SFT, RunStatus.QUEUED, None)
        assert "right order number" in projects.guidelines(s, project.id)


def test_two_workers_at_once_and_later_starts_make_nothing_twice(tiny, sessions):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: prepare.first_start(tiny, sessions), range(4)))
    prepare.first_start(tiny, sessions)
    with sessions() as s:
        [project] = projects.all_projects(s)
        assert len(runs.runs_of(s, project.id)) == 1


def test_a_brought_policy_is_the_first_one_without_any_run(tiny, sessions, monkeypatch):
    brought = []

    def bring(source, folder):
        brought.append((source, folder.parent))
        return {"model.safetensors": "00" * 32}

    monkeypatch.setattr(prepare, "bring", bring)
    prepare.first_start(tiny.model_copy(update={"policy": "org/model"}), sessions)
    assert brought == [("org/model", tiny.checkpoints_dir)]
    with sessions() as s:
        [project] = projects.all_projects(s)
        assert runs.runs_of(s, project.id) == []
        [policy] = checkpoints.policies(s, project.id)
        assert project.current_policy_id == policy.id
        assert policy.folder_name == str(policy.id)


def test_a_policy_that_cannot_serve_leaves_nothing_behind(tiny, sessions, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(Invalid, match="auto_map"):
        prepare.first_start(tiny.model_copy(update={"policy": str(folder)}), sessions)
    with sessions() as s:
        assert projects.all_projects(s) == []
    assert list(tiny.checkpoints_dir.iterdir()) == []


def test_no_letter_carries_a_label_of_its_quality(tiny, sessions):
    prepare.first_start(tiny, sessions)
    with sessions() as s:
        [project] = projects.all_projects(s)
        [(prompt, _)] = prompts.draw_prompts(s, project.id, 1, split=None)
        assert prompt.source == "starter"
        assert set(prompt.messages[0]) == {"role", "content"}
