"""A project's settings: all of them or none, and what becomes of what waits."""

import uuid

import pytest
from pydantic import ValidationError

from app.core.errors import Invalid
from app.core.project_settings import ProjectSettings
from app.core.vocabulary import DrawReason, Mode
from app.store import claims, comparisons, configuring, gold, judgments
from app.store.comparisons import SampledCompletion
from app.store.models import AuditEvent, Comparison, Slot


def change(session, project, by=None, **values):
    wanted = configuring.settings_of(project).model_dump() | values
    return configuring.configure(session, project.id, ProjectSettings.model_validate(wanted), by)


def test_what_is_read_can_be_written_back_and_changes_nothing(session, project):
    assert change(session, project).fields == []
    assert session.query(AuditEvent).filter_by(project_id=project.id, action="project.settings").count() == 0


def test_every_setting_arrives_and_the_change_is_on_record(session, make, project, policy):
    person, pair = make.person(project), make.pair(project, policy)
    gold.make_gold(session, project.id, pair.id, [[0], [1]], "why", False, None)
    values = {
        "allow_tie": False,
        "allow_both_bad": False,
        "ask_strength": True,
        "ask_flags": False,
        "ask_ratings": True,
        "ask_rationale": False,
        "ask_ideal": False,
        "votes_wanted": 3,
        "cap": 500,
        "admins_judge": False,
        "lease_seconds": 900,
        "gold_percent": 2.5,
        "repeat_percent": 4,
        "qualify_percent": 75,
        "chat_turns": 9,
        "chat_policy_id": policy.id,
        "pool_target": 100,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 200,
    }
    changed = change(session, project, person.id, **values)
    assert set(changed.fields) == set(values)
    session.refresh(project)
    assert configuring.settings_of(project).model_dump(include=set(values)) == values
    assert (project.gold_rate, project.repeat_rate, project.qualify_at) == (0.025, 0.04, 0.75)
    [event] = session.query(AuditEvent).filter_by(project_id=project.id, action="project.settings")
    assert event.account_id == person.id
    assert event.detail["cap"] == 500


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"qualify_on": 2}, "only 1 gold comparison of 2 answers"),
        ({"gold_percent": 3}, "no gold of 2 answers"),
        ({"mode": "rank", "answers": 4, "qualify_on": 1}, "only 0 gold comparisons of 4"),
        ({"mode": "chat", "repeat_percent": 3}, "pairs and rankings only"),
        ({"chat_policy_id": uuid.UUID(int=1)}, "no such policy"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason_and_nothing_changes(session, make, project, policy, values, word):
    pair = make.pair(project, policy)
    gold.make_gold(session, project.id, pair.id, [[0], [1]], "why", True, None)
    before = configuring.settings_of(project)
    with pytest.raises(Invalid, match=word):
        change(session, project, **values, votes_wanted=9)
    session.expire(project)
    assert configuring.settings_of(project) == before
    # With the gold that is there a round of one is fine.
    assert change(session, project, qualify_on=1).fields == ["qualify_on"]


@pytest.mark.parametrize(
    "values",
    [{"mode": "rank", "answers": 2}, {"votes_wanted": 0}, {"gold_percent": 51}, {"cap": 0}, {"temperature": "nan"}],
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(session, project, values):
    with pytest.raises(ValidationError):
        change(session, project, **values)


def test_a_change_of_mode_retires_what_no_longer_fits_and_lets_people_finish(session, make, project, policy):
    person, other = make.person(project), make.person(project)
    change(session, project, votes_wanted=2)
    session.refresh(project)
    pairs = [make.pair(project, policy) for _ in range(3)]
    [held] = claims.claim(session, project.id, person.id, 1)
    changed = change(session, project, mode="rank", answers=4)
    assert changed.retired == 3
    assert {pair.state for pair in session.query(Comparison).populate_existing().filter_by(project_id=project.id)} == {
        "retired"
    }
    assert claims.claim(session, project.id, other.id, 1) == []
    # What is on somebody's page is finished, and counts.
    assert judgments.submit(session, project.id, person.id, make.submission(held)).counted
    session.refresh(project)
    assert (project.mode, project.answers) == (Mode.RANK, 4)
    four = [
        SampledCompletion(f"text {i}", policy.id, i, 1.0, 1.0, 96, "ab" * 32, "stop")  # type: ignore[arg-type]
        for i in range(4)
    ]
    ranked = comparisons.add_sampled_pair(session, project, pairs[0].prompt_id, four, reason=DrawReason.RANDOM)
    [task] = claims.claim(session, project.id, other.id, 1)
    assert (task.comparison_id, len(task.answers)) == (ranked.id, 4)
    # To another mode that compares nothing what waits goes on waiting.
    assert change(session, project, mode="demonstrate").retired == 0
    session.refresh(project)
    assert project.answers == 2
    assert session.query(Slot).filter_by(comparison_id=ranked.id, state="free").count() == 1
