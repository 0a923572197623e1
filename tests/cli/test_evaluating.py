"""`pairwright evaluate` on a project's checkpoints and on folders; small models, real processes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.core.errors import Invalid, NotFound
from app.core.folders import write_folder
from app.core.vocabulary import CheckpointKind
from app.policy.checkpoint import save_policy
from app.policy.reward_model import ProbeReward, RewardSettings, save_reward_model
from app.policy.starter import new_starter
from app.settings import get_settings
from app.store import checkpoints
from app.store.db import make_engine, session_factory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny policies and a reward model that reads the first."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second")):
        policy = new_starter("tiny", seed)
        write_folder(folder / name, lambda partial, policy=policy: save_policy(partial, *policy))
    policy = new_starter("tiny", 0)
    probe = ProbeReward(RewardSettings(kind="probe", pooling="sum", likelihood=True, layers=[]), policy.model)
    probe.weight.data[0, 0] = 0.1
    write_folder(folder / "judge", lambda partial: save_reward_model(partial, probe, policy.tokenizer))
    return folder


def say(*words: str) -> str:
    done = CliRunner().invoke(cli, list(words), env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PAIRWRIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PAIRWRIGHT_TRAINING_THREADS", "1")
    get_settings.cache_clear()
    yield tmp_path
    get_settings.cache_clear()


@pytest.fixture
def prompts(here: Path) -> Path:
    rows = [
        {"prompt_id": str(i), "prompt": [{"role": "user", "content": f"Where is order {i}?"}], "split": "heldout"}
        for i in range(6)
    ]
    (here / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return here / "prompts.jsonl"


def test_folders_and_a_file_of_prompts_need_no_project(models: Path, prompts: Path, here: Path) -> None:
    out = here / "out.json"
    words = ["--base", str(models / "first"), "--reward-model", str(models / "judge"), "--file", str(prompts)]
    said = say("evaluate", str(models / "second"), *words, "--best-of", "2", "--prompts", "4", "--json", str(out))
    figures = json.loads(out.read_text())
    assert (figures["base"], figures["reward_model"]) == ("first", "judge")
    assert [line["name"] for line in figures["lines"]] == ["first", "first, best of 2", "second"]
    assert all(line["prompts"] == 4 for line in figures["lines"])
    assert "at most 0.19" in said
    assert "By judge on 4 held-out prompts" in said
    assert not (here / "home").exists(), "no database was started"


def test_a_projects_checkpoints_go_by_their_names(
    models: Path, here: Path, monkeypatch: pytest.MonkeyPatch, database_url: str, make_with: Callable
) -> None:
    monkeypatch.setenv("PAIRWRIGHT_DATABASE_URL", database_url)
    get_settings.cache_clear()
    folder = get_settings().make_home().checkpoints_dir
    engine = make_engine(database_url)
    with session_factory(engine).begin() as s:
        make = make_with(s)
        project = make.project(heldout_share=0.5)
        for _ in range(12):
            make.prompt(project)
        made = []
        for name, kind in (
            ("first", CheckpointKind.POLICY),
            ("second", CheckpointKind.POLICY),
            ("judge", CheckpointKind.REWARD_MODEL),
        ):
            (folder / name).symlink_to(models / name)
            parent = made[0].id if name == "second" else None
            made.append(checkpoints.register(s, project.id, kind, None, parent, name, {}, {}))
        checkpoints.promote(s, project.id, made[0].id, None)
    engine.dispose()
    out = here / "out.json"
    say("evaluate", "--best-of", "1", "--prompts", "3", "--json", str(out))
    figures = json.loads(out.read_text())
    # The current policy against what was trained from it, by the newest reward model.
    assert (figures["base"], figures["reward_model"]) == ("v1", "r1")
    assert [line["name"] for line in figures["lines"]] == ["v1", "v2"]
    with pytest.raises(NotFound, match="no v7"):
        say("evaluate", "v7")
    with pytest.raises(Invalid, match="Nothing was trained from v2"):
        say("evaluate", "--base", "v2", "--best-of", "1")


def test_what_cannot_be_compared_says_why(models: Path, prompts: Path, here: Path) -> None:
    words = ["--base", str(models / "first"), "--file", str(prompts), "--reward-model"]
    with pytest.raises(Invalid, match="is not a reward model"):
        say("evaluate", *words, str(models / "second"), "--best-of", "2")
    with pytest.raises(NotFound, match="no file"):
        say("evaluate", *words, str(models / "judge"), "--file", str(here / "nowhere.jsonl"))
