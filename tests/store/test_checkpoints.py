"""Trained models, promotion and going back."""

import pytest
from sqlalchemy import select

from app.core.errors import Conflict, Invalid, NotFound
from app.core.vocabulary import CheckpointKind
from app.store import audit, checkpoints, claims, comparisons, judgments
from app.store.models import Comparison, Slot


def states(session, *pairs):
    found = dict(session.execute(select(Comparison.id, Comparison.state)).all())
    return [found[pair.id] for pair in pairs]


def test_policies_and_reward_models_are_numbered_apart(session, make, project):
    for _ in range(2):
        make.policy(project)
        make.reward_model(project)
    assert [one.name for one in checkpoints.policies(session, project.id)] == ["v2", "v1"]
    assert [one.name for one in checkpoints.reward_models(session, project.id)] == ["r2", "r1"]


def test_registering_a_folder_again_gives_the_same_checkpoint_unless_its_files_changed(session, project):
    def register(files):
        return checkpoints.register(session, project.id, CheckpointKind.POLICY, None, None, "folder", files, {})

    first = register({"a": "00"})
    assert register({"a": "00"}).id == first.id
    with pytest.raises(Conflict):
        register({"a": "01"})


def test_promotion_retires_what_is_neither_judged_nor_leased(session, make, project):
    old = make.policy(project, promote=True)
    person = make.person(project)
    judged = make.pair(project, old)
    make.judged(project, person)
    leased = make.pair(project, old)
    [task] = claims.claim(session, project.id, person.id)
    waiting = [make.pair(project, old) for _ in range(3)]
    new = make.policy(project)
    move = checkpoints.promote(session, project.id, new.id, None)
    assert move.retired == 3
    assert states(session, judged, leased, *waiting) == ["open", "open", "retired", "retired", "retired"]
    assert claims.claim(session, project.id, make.person(project).id) == []
    assert comparisons.ready(session, project.id) == 0
    # What was leased finishes and counts, for the policy that wrote it.
    assert task.comparison_id == leased.id
    assert judgments.submit(session, project.id, person.id, make.submission(task)).counted
    session.refresh(project)
    assert project.current_policy_id == new.id


def test_a_lease_on_a_retired_comparison_does_not_reopen_it(session, make, project):
    old = make.policy(project, promote=True)
    person = make.person(project)
    pair = make.pair(project, old)
    [task] = claims.claim(session, project.id, person.id)
    session.get_one(Comparison, pair.id).state = "retired"
    session.flush()
    judgments.skip(session, project.id, person.id, task.comparison_id)
    assert list(session.scalars(select(Slot.state))) == ["retired"]


def test_rolling_back_walks_the_history_down(session, make, project):
    one, two, three = (make.policy(project, promote=True) for _ in range(3))

    def current():
        session.refresh(project)
        return project.current_policy_id

    assert current() == three.id
    checkpoints.roll_back(session, project.id, None)
    assert current() == two.id
    checkpoints.promote(session, project.id, three.id, None)
    checkpoints.roll_back(session, project.id, None)
    checkpoints.roll_back(session, project.id, None)
    assert current() == one.id
    with pytest.raises(Conflict, match="no earlier policy"):
        checkpoints.roll_back(session, project.id, None)
    moves = [(move.checkpoint_id, move.rolled_back) for move in checkpoints.history(session, project.id)]
    assert moves[:3] == [(one.id, True), (two.id, True), (three.id, False)]


def test_only_a_policy_of_this_project_that_is_not_current_can_be_promoted(session, make, project):
    current = make.policy(project, promote=True)
    for other, error in [
        (current, Conflict),
        (make.reward_model(project), Invalid),
        (make.policy(make.project()), NotFound),
    ]:
        with pytest.raises(error):
            checkpoints.promote(session, project.id, other.id, None)


def test_a_promotion_is_in_the_audit_log(session, make, project):
    admin = make.person(project)
    policy = make.policy(project)
    checkpoints.promote(session, project.id, policy.id, admin.id)
    event = audit.events(session, project.id)[0]
    assert (event.action, event.subject, event.account_id) == ("policy.promote", str(policy.id), admin.id)
