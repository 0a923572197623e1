"""Frozen judgments and what training reads."""

import hashlib
import json
import uuid

from sqlalchemy import select

from app.core.records import DemonstrationRecord, PreferenceRecord, PromptRecord
from app.core.vocabulary import DrawReason, Verdict
from app.store import claims, judgments, prompts, snapshots
from app.store.exports import export_full, export_trl
from app.store.models import Comparison, Membership, Prompt


def judge(make, project, policy, person, verdict=Verdict.LEFT, **fields):
    make.pair(project, policy, **fields)
    return make.judged(project, person, verdict)


def written(session, snapshot, path):
    assert snapshots.write_preferences(session, snapshot.id, path) == snapshot.sha256
    assert hashlib.sha256(path.read_bytes()).hexdigest() == snapshot.sha256
    return [PreferenceRecord.model_validate_json(line) for line in path.read_text().splitlines()]


def test_a_snapshot_holds_each_counted_judgment_as_it_stands(session, make, project, policy, person, tmp_path):
    receipts = [judge(make, project, policy, person, verdict) for verdict in Verdict]
    records = written(session, snapshots.freeze(session, project.id), tmp_path / "p.jsonl")
    assert [record.judgment_id for record in records] == sorted(str(one.judgment_id) for one in receipts)
    by_id = {record.judgment_id: record for record in records}
    left, right, tie, both_bad = (by_id[str(one.judgment_id)] for one in receipts)
    assert sorted(left.tiers) == sorted(right.tiers) == [[0], [1]]
    assert (tie.tiers, tie.both_bad) == ([[0, 1]], False)
    assert (both_bad.tiers, both_bad.both_bad) == ([[0, 1]], True)
    pseudonym = session.get_one(Membership, (project.id, person.id)).pseudonym
    assert {record.annotator for record in records} == {pseudonym}
    assert str(person.id) not in (tmp_path / "p.jsonl").read_text()
    prompt = session.get_one(Prompt, session.get_one(Comparison, uuid.UUID(left.comparison_id)).prompt_id)
    assert (left.prompt, left.split) == (prompt.messages, prompt.split)


def test_the_same_judgments_are_the_same_bytes_and_one_changed_vote_is_not(session, make, project, policy, person):
    judge(make, project, policy, person)
    make.pair(project, policy)
    [task] = claims.claim(session, project.id, person.id)
    judgments.submit(session, project.id, person.id, make.submission(task, Verdict.LEFT))
    first, second = snapshots.freeze(session, project.id), snapshots.freeze(session, project.id)
    judgments.submit(session, project.id, person.id, make.submission(task, Verdict.RIGHT))
    third = snapshots.freeze(session, project.id)
    assert first.sha256 == second.sha256 != third.sha256


def test_a_snapshot_stays_what_it_was_when_people_change_their_minds(session, make, project, policy, person, tmp_path):
    judge(make, project, policy, person, Verdict.TIE)
    snapshot = snapshots.freeze(session, project.id)
    judgments.undo(session, project.id, person.id)
    [record] = written(session, snapshot, tmp_path / "p.jsonl")
    assert record.tiers == [[0, 1]]
    assert snapshots.freeze(session, project.id).train + snapshots.freeze(session, project.id).heldout == 0


def test_gold_repeats_contests_surplus_and_withdrawn_judgments_are_left_out(session, make, project, policy, person):
    kept = judge(make, project, policy, person)
    judge(make, project, policy, person, reason=DrawReason.CONTEST)
    judge(make, project, policy, person)
    judgments.undo(session, project.id, person.id)
    snapshot = snapshots.freeze(session, project.id)
    assert snapshot.train + snapshot.heldout == 1
    rows = session.execute(snapshots.STANDING, {"project": project.id}).all()
    assert [row.judgment_id for row in rows] == [kept.judgment_id]


def test_both_sides_of_the_split_are_counted(session, make, project, policy, person, tmp_path):
    for i in range(30):
        judge(make, project, policy, person, prompt=make.prompt(project, f"question {i}"))
    snapshot = snapshots.freeze(session, project.id)
    records = written(session, snapshot, tmp_path / "p.jsonl")
    assert snapshot.train == sum(record.split == "train" for record in records)
    assert snapshot.heldout == 30 - snapshot.train


def test_prompts_and_demonstrations_are_written_as_the_trainer_reads_them(session, make, project, tmp_path):
    question = [{"role": "user", "content": "Wie groß?"}]
    prompts.add_demonstrations(session, project, [(question, "1,80 m")], "some source")
    record = tmp_path / "d.jsonl"
    digest = snapshots.write_demonstrations(session, project.id, record)
    assert digest == hashlib.sha256(record.read_bytes()).hexdigest()
    demonstration = DemonstrationRecord.model_validate_json(record.read_text())
    assert (demonstration.prompt, demonstration.completion) == (question, "1,80 m")
    assert "ß" in record.read_text()
    snapshots.write_prompts(session, project.id, tmp_path / "p.jsonl")
    prompt = PromptRecord.model_validate_json((tmp_path / "p.jsonl").read_text())
    assert (prompt.prompt_id, prompt.prompt, prompt.split) == (demonstration.prompt_id, question, demonstration.split)


def test_two_exports_are_the_same_bytes(session, make, project, policy, person):
    for verdict in Verdict:
        judge(make, project, policy, person, verdict)
    for export in (export_trl, export_full):
        assert b"".join(export(session, project.id)) == b"".join(export(session, project.id)) != b""


def test_trl_gets_the_better_answer_as_chosen_and_no_ties(session, make, project, policy, person):
    make.pair(project, policy)
    [task] = claims.claim(session, project.id, person.id)
    judgments.submit(session, project.id, person.id, make.submission(task, Verdict.RIGHT))
    judge(make, project, policy, person, Verdict.TIE)
    judge(make, project, policy, person, Verdict.BOTH_BAD)
    [line] = export_trl(session, project.id)
    assert json.loads(line) == {
        "prompt": task.prompt,
        "chosen": [{"role": "assistant", "content": task.answers[1]}],
        "rejected": [{"role": "assistant", "content": task.answers[0]}],
    }


def test_the_full_export_tells_the_whole_history_and_no_name(session, make, project, policy, person):
    make.pair(project, policy, probability=0.25)
    [task] = claims.claim(session, project.id, person.id)
    judgments.submit(session, project.id, person.id, make.submission(task, Verdict.LEFT, active_ms=1200))
    judgments.submit(session, project.id, person.id, make.submission(task, Verdict.TIE))
    judgments.undo(session, project.id, person.id)
    [line] = export_full(session, project.id)
    row = json.loads(line)
    assert [(one["revision"], one["verdict"], one["withdrawn"]) for one in row["revisions"]] == [
        (1, "left", False),
        (2, "tie", False),
        (3, None, True),
    ]
    assert row["revisions"][0]["active_ms"] == 1200
    assert row["revisions"][0]["shown_order"] == task.order
    assert row["revisions"][0]["submitted_at"].endswith("Z")
    assert (row["withdrawn"], row["counted"]) == (True, False)
    assert row["comparison"]["probability"] == 0.25
    assert [one["policy"] for one in row["completions"]] == ["v1", "v1"]
    assert [one["seed"] for one in row["completions"]] == [1, 2]
    assert person.username.encode() not in line
    assert str(person.id).encode() not in line


def test_another_projects_judgments_are_in_no_snapshot_and_no_export(session, make, project, policy, person):
    judge(make, project, policy, person)
    other = make.project()
    snapshot = snapshots.freeze(session, other.id)
    assert (snapshot.train, snapshot.heldout) == (0, 0)
    assert list(export_trl(session, other.id)) == list(export_full(session, other.id)) == []
    assert session.scalar(select(Comparison.project_id)) == project.id
