import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.cli.training import config_of, figures
from app.core.errors import Invalid
from app.core.vocabulary import RunKind

RUNNING = ["serve", "web", "worker", "migrate", "owner-link", "doctor", "version", "settings"]
USING = [
    "invite",
    "train",
    "runs",
    "cancel",
    "resume",
    "policies",
    "promote",
    "rollback",
    "import",
    "export",
    "evaluate",
    "project",
    "gold",
]


@pytest.mark.parametrize("command", [*RUNNING, *USING, "simulate", "rehearse"])
def test_every_command_has_its_help(command):
    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0
    assert len(done.output.splitlines()) > 3


def test_values_are_read_as_json_or_as_words():
    values = ["iterations=3", "optimizer=muon", "kl_budget=null", "beta=0.05"]
    assert config_of(RunKind.PPO, values) == {"iterations": 3, "optimizer": "muon", "kl_budget": None, "beta": 0.05}


def test_dpo_has_fields_of_its_own():
    assert config_of(RunKind.DPO, ["loss=ipo", "beta=0.5", "epochs=2"]) == {"loss": "ipo", "beta": 0.5, "epochs": 2}
    with pytest.raises(Invalid, match="A dpo run has no field gamma"):
        config_of(RunKind.DPO, ["gamma=1"])


def test_the_help_gives_an_example_that_works():
    told = CliRunner().invoke(cli, ["train", "--help"], env={"COLUMNS": "300"}).output
    assert "ppo.beta=0.1" in told
    assert config_of(RunKind.PPO, ["ppo.beta=0.1"], prefix=True) == {"beta": 0.1}


def test_the_loop_gives_each_run_its_own_values():
    values = ["ppo.iterations=3", "reward.log_every=1"]
    assert config_of(RunKind.PPO, values, prefix=True) == {"iterations": 3}
    assert config_of(RunKind.REWARD, values, prefix=True) == {"log_every": 1}


@pytest.mark.parametrize(
    ("values", "prefix", "told"),
    [
        (["iterations"], False, "has no value"),
        (["speed=3"], False, "has no field speed"),
        (["iterations=3"], True, "does not say which run"),
        (["sft.epochs=3"], True, "does not say which run"),
    ],
)
def test_a_word_that_means_nothing_is_refused(values, prefix, told):
    with pytest.raises(Invalid, match=told):
        config_of(RunKind.PPO, values, prefix=prefix)


def test_a_result_is_shown_in_a_line():
    assert figures({"accuracy": 0.71234, "name": "x", "n": 40, "gone": None}) == "accuracy 0.712, n 40"
