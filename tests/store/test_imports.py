"""Bringing prompts, demonstrations and preferences in."""

import io
import json
import tracemalloc

import pytest
from sqlalchemy import func, select

from app.core.agreement import longer_wins, raw_agreement
from app.core.errors import Conflict, Invalid, NotFound
from app.core.pairing import split_of
from app.store import accounts, imports, judgments, prompts
from app.store.imports import import_jsonl
from app.store.models import (
    Account,
    Candidate,
    Comparison,
    Completion,
    Demonstration,
    Judgment,
    JudgmentRevision,
    Membership,
    Prompt,
    Slot,
    new_id,
)


def jsonl(*rows):
    return io.BytesIO(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def bring(session, project, kind, *rows):
    return import_jsonl(session, project.id, kind, jsonl(*rows), None, "some file")


def count(session, table):
    return session.scalar(select(func.count()).select_from(table))


def test_prompts_come_plain_conversational_and_bare_and_once(session, project):
    report = bring(
        session,
        project,
        "prompts",
        {"prompt": "Where is my parcel?"},
        {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where is my parcel?"}]},
        "A bare question",
        {"prompt": "Where is my parcel?"},
    )
    assert (report.rows, report.added, report.skipped) == (4, 3, [])
    stored = session.scalars(select(Prompt).order_by(Prompt.id)).all()
    assert [one.messages[-1]["content"] for one in stored] == [
        "Where is my parcel?",
        "Where is my parcel?",
        "A bare question",
    ]
    # The system message does not move the question to the other side of the split.
    assert stored[0].split == stored[1].split == split_of(project.salt, "Where is my parcel?")
    assert {one.source for one in stored} == {"some file"}


def test_demonstrations_come_as_completions_and_as_messages_and_once(session, project):
    rows = [
        {"prompt": "Hello?", "completion": "Good day."},
        {"prompt": "Hello?", "completion": [{"role": "assistant", "content": "Good evening."}]},
        {"messages": [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you."}]},
    ]
    assert bring(session, project, "demonstrations", *rows).added == 3
    assert bring(session, project, "demonstrations", *rows).added == 0
    assert prompts.counts(session, project.id).demonstrations == 3
    assert count(session, Prompt) == 2
    assert set(session.scalars(select(Completion.text))) == {"Good day.", "Good evening.", "See you."}


def test_a_preference_is_a_judged_comparison_whose_order_does_not_tell(session, project):
    rows = [
        {"prompt": "One?", "chosen": "a", "rejected": "b"},
        {"prompt": "Two?", "chosen": "b", "rejected": "a"},
    ]
    assert bring(session, project, "preferences", *rows).added == 2
    query = (
        select(Completion.text)
        .join(Candidate, Candidate.completion_id == Completion.id)
        .order_by(Candidate.comparison_id, Candidate.position)
    )
    assert list(session.scalars(query)) == ["a", "b", "a", "b"]
    tiers = session.scalars(select(JudgmentRevision.tiers).order_by(JudgmentRevision.judgment_id))
    assert list(tiers) == [[[0], [1]], [[1], [0]]]
    assert judgments.summary(session, project.id).pairs == 2
    assert list(session.scalars(select(Slot.state))) == ["filled", "filled"]
    assert list(session.scalars(select(Comparison.state))) == ["imported", "imported"]


def test_an_imported_annotator_cannot_sign_in_and_is_no_member_of_the_team(session, project):
    bring(session, project, "preferences", {"prompt": "One?", "chosen": "a", "rejected": "b", "annotator": "w7"})
    [account] = session.scalars(select(Account))
    assert (account.username, account.password_hash) == (None, None)
    [member] = session.scalars(select(Membership))
    assert member.source == "some file/w7"
    assert "w7" not in member.pseudonym
    assert accounts.members(session, project.id) == []


def test_conversational_preferences_and_whole_conversations_are_the_same_pair(session, project):
    question = [{"role": "user", "content": "Tea?"}]
    yes, no = [{"role": "assistant", "content": "Yes."}], [{"role": "assistant", "content": "No."}]
    bring(
        session,
        project,
        "preferences",
        {"prompt": question, "chosen": yes, "rejected": no},
        {"chosen": question + yes, "rejected": question + no},
        {"chosen": "\n\nHuman: Tea?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Tea?\n\nAssistant: No."},
    )
    assert [one.messages for one in session.scalars(select(Prompt))] == [question]
    assert count(session, Comparison) == 3


def test_oddities_are_taken_left_out_and_counted(session, project):
    report = bring(
        session,
        project,
        "preferences",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: d",
        },
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: OTHER\n\nAssistant: c"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"},
        {"prompt": "q", "chosen": "same", "rejected": "same"},
    )
    assert (report.rows, report.added) == (4, 3)
    assert report.skipped == [(2, "the two conversations differ before the last answer")]
    assert report.notes == {
        "neighbouring turns of one speaker were joined": 1,
        "the two conversations differ before the last answer": 1,
        "answers are empty": 1,
        "pairs have two identical answers": 1,
    }
    assert "b\n\nc" in set(session.scalars(select(Completion.text)))


BAD_LINES = {
    b"not json": "it is not valid JSON",
    b'{"prompt": NaN}': "NaN is not JSON",
    b'{"prompt": ""}': "the prompt is empty",
    b'{"question": "q"}': "it has no field 'prompt'",
    b"17": "it is not a JSON object",
    b'{"prompt": [{"role": "wizard", "content": "x"}]}': "a message is not a role",
    b'{"prompt": [{"role": "assistant", "content": "y"}]}': "does not end with a message",
    b'"\xff"': "it is not UTF-8",
    b'"a\\u0000b"': "it holds a NUL character",
    b'"\\ud800"': "it holds half of a surrogate pair",
    b"[" * 100_000: "it is nested too deeply",
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=BAD_LINES.get)
def test_a_malformed_line_is_named_and_nothing_is_added(session, project, bad):
    stream = io.BytesIO(b'"good"\n' + bad + b'\n"good too"\n')
    with pytest.raises(Invalid, match="Line 2: ") as refusal:
        import_jsonl(session, project.id, "prompts", stream, None, "f")
    assert BAD_LINES[bad] in refusal.value.message
    assert refusal.value.mend == "Nothing was added."
    assert count(session, Prompt) == 0


def test_a_backslash_that_only_looks_like_a_nul_is_text(session, project):
    assert import_jsonl(session, project.id, "prompts", io.BytesIO(rb'"a\\u0000b"'), None, "f").added == 1
    assert session.scalar(select(Prompt)).messages[0]["content"] == r"a\u0000b"


def test_the_first_twenty_malformed_lines_are_named(session, project):
    stream = io.BytesIO(b"".join(b'"fine"\nbroken\n' for _ in range(30)))
    with pytest.raises(Invalid) as refusal:
        import_jsonl(session, project.id, "prompts", stream, None, "f")
    assert "line 40:" in refusal.value.message
    assert "line 42:" not in refusal.value.message
    assert "Only the first are named" in refusal.value.message


def test_a_malformed_line_past_the_first_batch_takes_everything_back(session, project, monkeypatch):
    monkeypatch.setattr("app.store.bulk.batches.__defaults__", (2,))
    with pytest.raises(Invalid, match="Line 6"):
        import_jsonl(session, project.id, "prompts", io.BytesIO(b'"a"\n"b"\n"c"\n"d"\n"e"\n!\n'), None, "f")
    assert count(session, Prompt) == 0


def test_one_endless_line_is_refused_within_fixed_memory(session, project):
    chunk = b"x" * 65536
    tracemalloc.start()
    with pytest.raises(Invalid, match="Line 1 is longer than 1 MB"):
        import_jsonl(session, project.id, "prompts", (chunk for _ in range(10_000)), None, "f")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("cap", "value", "words"),
    [("MAX_ROWS", 2, "more than 2 rows"), ("MAX_BYTES", 1 << 20, "larger than 1 MB"), ("MAX_ARRAY", 1 << 20, "1 MB")],
)
def test_every_cap_holds(session, project, monkeypatch, cap, value, words):
    monkeypatch.setattr(imports, cap, value)
    start = b"[" if cap == "MAX_ARRAY" else b""
    stream = (start + json.dumps("y" * 500_000).encode() + b"\n" for _ in range(5))
    with pytest.raises(Invalid, match=words):
        import_jsonl(session, project.id, "prompts", stream, None, "f")


def test_compressed_and_empty_files_are_refused(session, project):
    for stream, words in [(b"\x1f\x8b\x08\x00", "compressed"), (b"", "empty"), (b"\n\n", "empty")]:
        with pytest.raises(Invalid, match=words):
            import_jsonl(session, project.id, "prompts", io.BytesIO(stream), None, "f")


def test_a_byte_order_mark_and_chunks_that_cut_characters_do_no_harm(session, project):
    whole = b"\xef\xbb\xbf" + '"Größe?"\n"Σ"'.encode()
    report = import_jsonl(session, project.id, "prompts", (whole[i : i + 1] for i in range(len(whole))), None, "f")
    assert report.added == 2
    assert {one.messages[0]["content"] for one in session.scalars(select(Prompt))} == {"Größe?", "Σ"}


def test_the_same_preferences_cannot_be_imported_twice(session, project, make):
    rows = [{"prompt": "One?", "chosen": "a", "rejected": "b"}]
    bring(session, project, "preferences", *rows)
    with pytest.raises(Conflict, match="imported before"):
        bring(session, project, "preferences", *rows)
    assert count(session, Comparison) == 1
    bring(session, make.project(), "preferences", *rows)


def test_a_project_that_is_not_there_is_not_found(session):
    with pytest.raises(NotFound):
        import_jsonl(session, new_id(), "prompts", jsonl("x"), None, "f")


def test_many_demonstrations_go_in_within_seconds(session, project):
    rows = (([{"role": "user", "content": f"Question {i}"}], f"Answer {i}") for i in range(18_000))
    assert prompts.add_demonstrations(session, project, rows, "grammar") == 18_000
    assert count(session, Demonstration) == 18_000
    heldout = prompts.counts(session, project.id).heldout
    assert 1_600 < heldout < 2_000


@pytest.mark.data
def test_pandalm_gives_the_published_agreement_and_the_longer_wins_floor(session, project, data_folder):
    with (data_folder / "pandalm" / "testset-v1.json").open("rb") as file:
        report = import_jsonl(session, project.id, "preferences", file, None, "pandalm")
    assert (report.rows, report.added, report.skipped) == (999, 999, [])
    assert report.notes == {
        "answers were a JSON true or false and were taken as that word": 6,
        "answers are empty": 54,
        "votes are ties": 326,
    }
    summary = judgments.summary(session, project.id)
    assert (summary.pairs, summary.people, summary.ties, summary.agreement_pairs) == (2997, 3, 326, 2997)
    assert summary.agreement == pytest.approx(0.91992, abs=5e-6)

    votes, answers = {}, {}
    query = select(Judgment.comparison_id, JudgmentRevision.tiers).join(
        JudgmentRevision, JudgmentRevision.judgment_id == Judgment.id
    )
    for comparison_id, tiers in session.execute(query):
        votes.setdefault(comparison_id, []).append(json.dumps(tiers))
    assert raw_agreement(list(votes.values())) == (pytest.approx(0.91992, abs=5e-6), 2997)
    query = select(Candidate.comparison_id, Candidate.position, Completion.text).join(
        Completion, Completion.id == Candidate.completion_id
    )
    for comparison_id, position, words in session.execute(query):
        answers.setdefault(comparison_id, {})[position] = words
    better, worse = [], []
    for comparison_id, cast in votes.items():
        winner = next((vote for vote in set(cast) if cast.count(vote) > 1 and vote != "[[0, 1]]"), None)
        if winner is not None:
            [[best], [last]] = json.loads(winner)
            better.append(answers[comparison_id][best])
            worse.append(answers[comparison_id][last])
    assert len(better) == 894
    assert longer_wins(better, worse) == pytest.approx(0.6728, abs=5e-5)


@pytest.mark.data
def test_the_hh_sample_goes_in_but_for_the_pair_that_differs_earlier(session, project, data_folder):
    with (data_folder / "hh-rlhf" / "harmless_sample.jsonl").open("rb") as file:
        report = import_jsonl(session, project.id, "preferences", file, None, "hh")
    assert (report.rows, report.added) == (502, 501)
    assert report.skipped == [(290, "the two conversations differ before the last answer")]
    assert report.notes == {
        "the two conversations differ before the last answer": 1,
        "neighbouring turns of one speaker were joined": 2,
    }
    summary = judgments.summary(session, project.id)
    assert (summary.pairs, summary.people, summary.agreement) == (501, 1, None)
    turns = session.scalars(select(func.jsonb_array_length(Prompt.messages)))
    assert max(turns) == 23  # twelve turns of the user and the answers between them


@pytest.mark.data
def test_demonstrations_and_prompts_that_others_wrote_go_in(session, project, data_folder):
    with (data_folder / "open-assistant" / "prompt_lottery_en_250_text.jsonl").open("rb") as file:
        report = import_jsonl(session, project.id, "prompts", file, None, "oasst")
    assert report.rows == 250
    assert report.added == prompts.counts(session, project.id).train + prompts.counts(session, project.id).heldout
