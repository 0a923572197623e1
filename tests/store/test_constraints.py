"""What the database itself refuses, whatever the code above it does."""

import uuid

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from app.store import accounts, audit, checkpoints, claims, prompts, snapshots
from app.store.models import (
    Assignment,
    AuditEvent,
    Base,
    Candidate,
    Checkpoint,
    Comparison,
    Completion,
    Demonstration,
    Guideline,
    Judgment,
    JudgmentRevision,
    Project,
    Promotion,
    Prompt,
    Run,
    Slot,
    Snapshot,
    SnapshotJudgment,
    new_id,
)


@pytest.fixture
def world(session, make, project):
    """A project in which everything has happened once."""
    policy = make.policy(project, promote=True)
    person = make.person(project)
    make.pair(project, policy)
    make.judged(project, person)
    prompts.add_demonstrations(session, project, [([{"role": "user", "content": "q"}], "a")], "test")
    snapshots.freeze(session, project.id)
    audit.record(session, project.id, None, "test", "nothing")
    session.flush()
    return project


NEVER_CHANGED = [
    JudgmentRevision,
    Completion,
    Candidate,
    Demonstration,
    Checkpoint,
    Promotion,
    Snapshot,
    SnapshotJudgment,
    Guideline,
    AuditEvent,
]


@pytest.mark.parametrize("table", NEVER_CHANGED, ids=lambda table: table.__tablename__)
def test_what_happened_is_neither_changed_nor_deleted(session, world, table):
    column = next(iter(table.__table__.columns))
    if column.identity is not None:
        column = list(table.__table__.columns)[1]
    for statement in (update(table).values({column.name: column}), delete(table)):
        with pytest.raises(IntegrityError, match="never changed or deleted"), session.begin_nested():
            session.execute(statement, execution_options={"synchronize_session": False})


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (Project, {"salt": "x"}),
        (Project, {"heldout_share": 0.5}),
        (Prompt, {"split": "heldout"}),
        (Prompt, {"digest": b"x"}),
    ],
)
def test_the_split_never_moves(session, world, table, values):
    with pytest.raises(IntegrityError, match="never changed"):
        session.execute(update(table).values(values), execution_options={"synchronize_session": False})


def refused(session, name, *rows):
    """The database refuses the last of these (table, values) rows, by the constraint of this name."""
    for table, values in rows[:-1]:
        session.execute(insert(table.__table__).values(values))
    table, values = rows[-1]
    with pytest.raises(IntegrityError, match=name), session.begin_nested():
        session.execute(insert(table.__table__).values(values))


def test_a_row_never_points_into_another_project(session, make, project):
    """Every foreign key that could lead out of the project carries the project with it."""
    other = make.project()
    theirs = make.policy(other, promote=True)
    pair = make.pair(other, theirs)
    mine = make.prompt(project)
    stranger = make.person(other)
    run = {"id": new_id(), "project_id": project.id, "number": 1, "kind": "sft", "config": {}, "seed": 0}
    comparison = {"id": new_id(), "project_id": project.id, "probability": 1.0, "reason": "random", "votes_wanted": 1}
    sampled = {"id": new_id(), "project_id": project.id, "origin": "sampled", "text": "", "finish_reason": "stop"}
    sampled |= {"seed": 0, "temperature": 1, "top_p": 1, "max_tokens": 1, "chat_template_hash": "x"}
    refused(session, "fk_comparison_project_id_prompt_id", (Comparison, {**comparison, "prompt_id": pair.prompt_id}))
    refused(
        session,
        "fk_comparison_project_id_checkpoint_id",
        (Comparison, {**comparison, "prompt_id": mine.id, "checkpoint_id": theirs.id}),
    )
    refused(
        session,
        "fk_completion_project_id_checkpoint_id",
        (Completion, {**sampled, "prompt_id": mine.id, "checkpoint_id": theirs.id}),
    )
    refused(session, "fk_run_project_id_policy_id", (Run, {**run, "policy_id": theirs.id}))
    refused(
        session,
        "fk_assignment_project_id_account_id",
        (Comparison, {**comparison, "prompt_id": mine.id}),
        (
            Assignment,
            {"comparison_id": comparison["id"], "account_id": stranger.id, "project_id": project.id, "state": "judged"},
        ),
    )
    with pytest.raises(IntegrityError, match="fk_project_current_policy"), session.begin_nested():
        session.execute(update(Project).where(Project.id == project.id).values(current_policy_id=theirs.id))


def test_every_foreign_key_between_rows_of_projects_carries_the_project():
    """A foreign key between two tables that both have a project names it, or passes through the comparison."""
    through_comparison = {"slot", "judgment"}
    loose = [
        constraint.name
        for table in Base.metadata.tables.values()
        for constraint in table.foreign_key_constraints
        if "project_id" in table.columns
        and "project_id" in constraint.referred_table.columns
        and "project_id" not in constraint.column_keys
        and not (table.name in through_comparison and "comparison_id" in constraint.column_keys)
    ]
    assert loose == []


def test_the_current_policy_is_never_a_reward_model(session, make, project):
    model = make.reward_model(project)
    with pytest.raises(IntegrityError, match="fk_project_current_policy"):
        session.execute(update(Project).where(Project.id == project.id).values(current_policy_id=model.id))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"origin": "sampled"}, "sampled_has_provenance"),
        ({"origin": "imported"}, "imported_names_source"),
        ({"origin": "imported", "source": "f", "seed": 1}, "sampled_has_provenance"),
        ({"origin": "written"}, "written_names_author"),
        ({"origin": "edited"}, "written_names_author|edited_names_original"),
        ({"origin": "dreamt"}, "ck_completion_origin|value too long"),
    ],
)
def test_a_completion_carries_exactly_what_its_origin_demands(session, make, project, fields, name):
    prompt = make.prompt(project)
    values = {"id": new_id(), "project_id": project.id, "prompt_id": prompt.id, "text": "x"} | fields
    with pytest.raises(DBAPIError, match=name):
        session.execute(insert(Completion.__table__).values({k: text(f"'{v}'") for k, v in values.items()}))


def test_both_answers_answer_the_question_that_is_asked(session, make, project):
    policy = make.policy(project)
    one, other = make.pair(project, policy), make.pair(project, policy)
    foreign = session.scalars(select(Candidate.completion_id).where(Candidate.comparison_id == other.id)).first()
    refused(
        session,
        "fk_candidate_project_id_prompt_id_completion_id",
        (
            Candidate,
            {
                "comparison_id": one.id,
                "position": 2,
                "project_id": project.id,
                "prompt_id": one.prompt_id,
                "completion_id": foreign,
            },
        ),
    )


def test_nobody_fills_two_slots_and_nobody_judges_twice(session, make):
    project = make.project(votes_wanted=2)
    pair = make.pair(project, make.policy(project))
    person = make.person(project)
    make.judged(project, person)
    with pytest.raises(IntegrityError, match="uq_slot_holder"), session.begin_nested():
        session.execute(update(Slot).where(Slot.state == "free").values(state="filled", holder_id=person.id))
    refused(
        session,
        "uq_judgment_comparison_account",
        (Judgment, {"project_id": project.id, "comparison_id": pair.id, "account_id": person.id}),
    )
    refused(
        session,
        "pk_assignment",
        (Assignment, {"comparison_id": pair.id, "account_id": person.id, "project_id": project.id, "state": "judged"}),
    )


def test_a_key_is_used_once_by_one_person(session, make, project):
    make.pair(project, make.policy(project))
    key = uuid.uuid4()
    person = make.person(project)
    receipt = make.judged(project, person, key=key)
    refused(
        session,
        "uq_judgment_revision_account_id_key",
        (
            JudgmentRevision,
            {
                "judgment_id": receipt.judgment_id,
                "revision": 2,
                "account_id": person.id,
                "key": key,
                "tiers": [[0, 1]],
                "counted": True,
            },
        ),
    )


def test_a_slot_is_held_exactly_while_it_is_leased_or_filled(session, make, project):
    make.pair(project, make.policy(project))
    for state in ("leased", "filled", "lost"):
        with pytest.raises(IntegrityError, match="ck_slot"), session.begin_nested():
            session.execute(update(Slot).values(state=state))


def test_a_lease_has_an_end_exactly_while_it_lasts(session, make, project):
    make.pair(project, make.policy(project))
    claims.claim(session, project.id, make.person(project).id)
    for values in ({"lease_expires_at": None}, {"state": "judged"}):
        with pytest.raises(IntegrityError, match="leased_until"), session.begin_nested():
            session.execute(update(Assignment).values(values))


def test_a_withdrawing_revision_says_nothing_and_any_other_says_something(session, make, project):
    make.pair(project, make.policy(project))
    person = make.person(project)
    receipt = make.judged(project, person)
    common = {"judgment_id": receipt.judgment_id, "revision": 2, "account_id": person.id, "counted": False}
    for fields in (
        {"withdrawn": True, "tiers": [[0, 1]]},
        {"withdrawn": False, "tiers": None},
        {"withdrawn": False, "tiers": [[0], [1]], "both_bad": True},
        {"withdrawn": False, "tiers": [[0], [1]], "strength": 5},
        {"withdrawn": False, "tiers": [[0], [1]], "active_ms": -1},
    ):
        refused(session, "ck_judgment_revision", (JudgmentRevision, {**common, **fields, "key": uuid.uuid4()}))


def test_a_running_run_has_a_worker_and_a_failed_one_says_why(session, make, project):
    policy = make.policy(project)
    run = {"project_id": project.id, "number": 1, "config": {}, "seed": 0}
    refused(session, "running_has_a_worker", (Run, {**run, "kind": "sft", "status": "running"}))
    refused(session, "failed_says_why|ended", (Run, {**run, "kind": "sft", "status": "failed"}))
    refused(session, "reward_reads_a_snapshot", (Run, {**run, "kind": "reward", "policy_id": policy.id}))
    refused(session, "dpo_reads_a_snapshot", (Run, {**run, "kind": "dpo", "policy_id": policy.id}))
    refused(session, "ck_run_kind", (Run, {**run, "kind": "grpo", "policy_id": policy.id}))
    refused(session, "ppo_has_a_reward_model", (Run, {**run, "kind": "ppo", "policy_id": policy.id}))
    refused(session, "starts_from_a_policy|ppo_has", (Run, {**run, "kind": "ppo"}))


def test_a_checkpoints_folder_is_a_name_and_no_path(session, project):
    for folder in ("../elsewhere", "a/b", "..", ""):
        with pytest.raises(IntegrityError, match="folder_is_a_name"), session.begin_nested():
            checkpoints.register(session, project.id, "policy", None, None, folder, {}, {})


def test_an_imported_annotator_cannot_have_a_password(session):
    refused(
        session,
        "imported_cannot_sign_in",
        (accounts.Account, {"kind": "imported", "username": "x", "username_key": "x", "password_hash": "y"}),
    )
