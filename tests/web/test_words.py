"""Numbers, times and names as a reader sees them."""

from datetime import UTC, datetime, timedelta

import pytest

from app.core.vocabulary import RunKind, RunStatus
from app.web import words


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (4180, "4,180"),
        (5234.7, "5,235"),
        (0.00025, "0.00025"),
        (3.14159, "3.14"),
        (-0.07951, "−0.0795"),
        (-12, "−12"),
        (None, "–"),
        (True, "True"),
        ("cosine", "cosine"),
        (float("nan"), "nan"),
    ],
)
def test_a_metric_of_any_size_has_three_significant_digits(value, shown):
    assert words.figure(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0 s"),
        (72, "72 s"),
        (372, "6 min"),
        (7500, "2 h 5 min"),
        (7200, "2 h"),
        (200_000, "2 days"),
        (None, "a while"),
    ],
)
def test_a_duration_is_in_the_unit_a_person_would_use(seconds, shown):
    assert words.duration(seconds) == shown


def test_shares_and_milliseconds():
    assert (words.percent(0.718), words.whole_percent(0.718), words.percent(None)) == ("71.8 %", "72 %", "–")
    assert (words.seconds(11200), words.seconds(1240)) == ("11 s", "1.2 s")


def test_the_age_of_things():
    now = datetime.now(UTC)
    assert words.ago(now) == "just now"
    assert words.ago(now - timedelta(hours=3)) == "3 h ago"
    assert words.ago(None) == "–"


def test_names():
    assert words.speaker("user", 1) == "Prompt"
    assert words.speaker("user", 3) == "User"
    assert words.speaker("assistant", 3) == "Assistant"
    assert words.whose(["v2", "v1", None]) == "v1 and v2"
    assert words.whose([None, None]) == ""
    assert words.setting("kl_target") == "KL target"
    assert words.setting("learning_rate") == "Learning rate"
    assert {words.kind(kind) for kind in RunKind} == {"SFT", "Reward model", "PPO", "DPO"}
    assert words.state(RunStatus.RUNNING) == "training"
