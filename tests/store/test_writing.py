"""Writing ideal answers."""

import json
import threading
import uuid

import pytest
from sqlalchemy import select, text, update

from app.core.errors import Conflict, Invalid, NotFound
from app.core.records import DemonstrationRecord
from app.core.vocabulary import Origin, SkipReason, Split, Verdict
from app.store import claims, drafts, judgments, prompts, snapshots, writing
from app.store.db import make_engine, session_factory
from app.store.models import Completion, Demonstration, Prompt, Writing, new_id
from app.store.writing import Written


def run_out(session, *people):
    """Let the leases of these people run out, by the database's clock."""
    session.execute(
        update(Writing)
        .where(Writing.account_id.in_([one.id for one in people]), Writing.state == "leased")
        .values(lease_expires_at=text("now() - interval '1 second'")),
        execution_options={"synchronize_session": False},
    )


def said(task, words="An ideal answer.", **fields):
    return Written(**({"prompt_id": task.prompt_id, "key": uuid.uuid4(), "text": words} | fields))


@pytest.fixture
def prompt(make, project):
    return make.prompt(project, "Where is my kettle?")


@pytest.fixture
def write(session, project):
    """Claim, write, and the demonstration."""

    def writes(person, words="An ideal answer.", **fields):
        task = writing.claim(session, project.id, person.id)
        receipt = writing.submit(session, project.id, person.id, said(task, words, **fields))
        return session.get_one(Demonstration, receipt.demonstration_id)

    return writes


def read_back(session, project, tmp_path):
    """What SFT would read."""
    snapshots.write_demonstrations(session, project.id, tmp_path / "d.jsonl")
    lines = (tmp_path / "d.jsonl").read_text().splitlines()
    return [DemonstrationRecord.model_validate_json(line).completion for line in lines]


def test_what_is_written_is_a_completion_and_a_demonstration_with_its_author(session, project, person, prompt, write):
    made = write(person, "It is on its way.\r\n\r\nBest wishes", active_ms=4000)
    completion = session.get_one(Completion, made.completion_id)
    assert (completion.prompt_id, completion.origin, completion.author_id) == (prompt.id, Origin.WRITTEN, person.id)
    assert completion.text == "It is on its way.\n\nBest wishes"
    assert (made.replaces_id, made.guideline_version) == (None, 1)
    met = session.get_one(Writing, (prompt.id, person.id))
    assert (met.state, met.active_ms, met.demonstration_id) == ("written", 4000, made.id)
    assert writing.tally(session, project.id, person.id) == writing.WritingTally(1, 1, made.id)
    assert writing.claim(session, project.id, person.id) is None


def test_two_tabs_share_one_prompt_and_two_people_never_do(session, make, project, person, prompt):
    other = make.person(project)
    first, again = (writing.claim(session, project.id, person.id) for _ in range(2))
    assert first == again
    assert first.prompt[0]["content"] == "Where is my kettle?"
    assert writing.claim(session, project.id, other.id) is None
    second = make.prompt(project)
    assert writing.claim(session, project.id, other.id).prompt_id == second.id


def test_many_people_at_once_get_a_prompt_each_and_the_rest_get_none(database_url, make_with):
    engine = make_engine(database_url, pool_size=12)
    sessions = session_factory(engine)
    with sessions() as s:
        make = make_with(s)
        project = make.project()
        for _ in range(7):
            make.prompt(project)
        people = [make.person(project) for _ in range(12)]
        s.commit()
    gate, got, failed = threading.Barrier(len(people)), [], []

    def visit(person):
        with sessions() as s:
            gate.wait()
            try:
                task = writing.claim(s, project.id, person.id)
                if task is not None:
                    got.append(task.prompt_id)
                s.commit()
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=visit, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert len(got) == len(set(got)) == 7
    engine.dispose()


def test_a_late_text_and_the_claim_of_another_in_the_same_moment_lose_nothing(database_url, make_with):
    engine = make_engine(database_url)
    sessions = session_factory(engine)
    with sessions() as s:
        make = make_with(s)
        project = make.project()
        for _ in range(6):
            make.prompt(project)
        late = [make.person(project) for _ in range(6)]
        tasks = [writing.claim(s, project.id, one.id) for one in late]
        run_out(s, *late)
        others = [make.person(project) for _ in range(6)]
        s.commit()
    gate, failed, stored = threading.Barrier(12), [], []

    def act(work):
        with sessions() as s:
            gate.wait()
            try:
                stored.append(work(s))
                s.commit()
            except Exception as error:
                failed.append(error)

    def submitting(person, task):
        return lambda s: writing.submit(s, project.id, person.id, said(task, f"by {person.id}"))

    def claiming(person):
        return lambda s: writing.claim(s, project.id, person.id)

    work = [submitting(*pair) for pair in zip(late, tasks, strict=True)] + [claiming(one) for one in others]
    threads = [threading.Thread(target=act, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    with sessions() as s:
        assert prompts.counts(s, project.id).demonstrations == 6
        live = s.scalars(select(Writing.prompt_id).where(Writing.state.in_(["leased", "written"]))).all()
        assert len(live) == len(set(live))
        for task, person in zip(tasks, late, strict=True):
            met = s.get_one(Writing, (task.prompt_id, person.id))
            taken = met.prompt_id in [one.prompt_id for one in stored if isinstance(one, writing.WritingTask)]
            assert met.state == ("expired" if taken else "written")
    engine.dispose()


def test_the_same_key_is_the_same_receipt_and_another_body_under_it_is_refused(session, make, project, person, prompt):
    task = writing.claim(session, project.id, person.id)
    sent = said(task, active_ms=100)
    first = writing.submit(session, project.id, person.id, sent)
    again = writing.submit(session, project.id, person.id, sent)
    assert (again.demonstration_id, again.replayed) == (first.demonstration_id, True)
    with pytest.raises(Conflict):
        writing.submit(session, project.id, person.id, said(task, "Something else.", key=sent.key))
    make.prompt(project)
    following = writing.claim(session, project.id, person.id)
    with pytest.raises(Conflict):
        writing.submit(session, project.id, person.id, said(following, key=sent.key))
    assert prompts.counts(session, project.id).demonstrations == 1


def test_a_lease_that_ran_out_opens_the_prompt_and_both_texts_are_kept(session, make, project, person, prompt, write):
    other = make.person(project)
    task = writing.claim(session, project.id, person.id)
    run_out(session, person)
    theirs = write(other, "By the other.")
    receipt = writing.submit(session, project.id, person.id, said(task, "By the first, late."))
    assert receipt.late
    mine = session.get_one(Demonstration, receipt.demonstration_id)
    assert (mine.replaces_id, theirs.replaces_id) == (None, None)
    assert session.get_one(Writing, (prompt.id, person.id), populate_existing=True).state == "expired"
    assert prompts.counts(session, project.id).demonstrations == 2
    assert writing.claim(session, project.id, person.id) is None


def test_a_late_text_while_nobody_else_writes_is_like_any_other(session, project, person, prompt, make):
    task = writing.claim(session, project.id, person.id)
    run_out(session, person)
    assert not writing.submit(session, project.id, person.id, said(task)).late
    assert session.get_one(Writing, (prompt.id, person.id), populate_existing=True).state == "written"
    assert writing.claim(session, project.id, make.person(project).id) is None


def test_what_was_begun_comes_back_with_its_text_even_when_somebody_else_took_the_prompt(
    session, make, project, person, prompt
):
    other = make.person(project)
    task = writing.claim(session, project.id, person.id)
    drafts.save(session, project.id, person.id, task.prompt_id, {"text": "Dear cust"})
    run_out(session, person)
    writing.claim(session, project.id, other.id)
    make.prompt(project)
    back = writing.claim(session, project.id, person.id)
    assert (back.prompt_id, back.text) == (prompt.id, "Dear cust")
    assert writing.submit(session, project.id, person.id, said(back)).late
    assert drafts.load(session, person.id, [prompt.id]) == {}


def test_a_skipped_prompt_goes_to_somebody_else_with_the_reason_kept(session, make, project, person, prompt):
    task = writing.claim(session, project.id, person.id)
    drafts.save(session, project.id, person.id, task.prompt_id, {"text": "Dear cust"})
    writing.skip(session, project.id, person.id, task.prompt_id, SkipReason.NOT_MY_FIELD)
    writing.skip(session, project.id, person.id, task.prompt_id)
    assert writing.claim(session, project.id, person.id) is None
    met = session.get_one(Writing, (prompt.id, person.id), populate_existing=True)
    assert (met.state, met.skip_reason) == ("skipped", "not_my_field")
    assert writing.claim(session, project.id, make.person(project).id).prompt_id == prompt.id


def test_a_revised_one_replaces_the_old_for_all_who_learn_from_it(session, project, person, prompt, write, tmp_path):
    old = write(person, "First thoughts.")
    task = writing.revise(session, project.id, person.id, old.id)
    assert (task.text, task.revises) == ("First thoughts.", old.id)
    new = writing.submit(session, project.id, person.id, said(task, "Second thoughts."))
    assert session.get_one(Demonstration, new.demonstration_id).replaces_id == old.id
    assert read_back(session, project, tmp_path) == ["Second thoughts."]
    assert prompts.counts(session, project.id).demonstrations == 1
    assert writing.revise(session, project.id, person.id, old.id).text == "Second thoughts."
    # Unchanged words are no new demonstration, and an old key that comes again brings no third.
    same = writing.submit(session, project.id, person.id, said(task, "Second thoughts."))
    assert (same.demonstration_id, same.replayed) == (new.demonstration_id, True)
    newest = writing.submit(session, project.id, person.id, said(task, "Third thoughts."))
    assert session.get_one(Demonstration, newest.demonstration_id).replaces_id == new.demonstration_id
    assert read_back(session, project, tmp_path) == ["Third thoughts."]


def test_the_demonstrations_of_two_people_stand_side_by_side_for_sft(session, make, project, person, write, tmp_path):
    make.prompt(project, "a")
    task = writing.claim(session, project.id, person.id)
    run_out(session, person)
    write(make.person(project), "Theirs.")
    writing.submit(session, project.id, person.id, said(task, "Mine."))
    assert sorted(read_back(session, project, tmp_path)) == ["Mine.", "Theirs."]


def test_nobody_revises_or_answers_what_is_not_theirs(session, make, project, person, prompt, write):
    other, elsewhere = make.person(project), make.project()
    mine = write(person)
    for project_id, account_id in [(project.id, other.id), (elsewhere.id, person.id)]:
        with pytest.raises(NotFound):
            writing.revise(session, project_id, account_id, mine.id)
        with pytest.raises(NotFound):
            writing.submit(session, project_id, account_id, Written(prompt.id, uuid.uuid4(), "Not mine."))
        with pytest.raises(NotFound):
            writing.skip(session, project_id, account_id, prompt.id)
        with pytest.raises(NotFound):
            writing.task(session, project_id, account_id, prompt.id)
    with pytest.raises(Conflict):
        writing.skip(session, project.id, person.id, prompt.id)


@pytest.mark.parametrize(
    ("words", "fields", "says"),
    [
        (" \n ", {}, "no text yet"),
        ("x" * 20_001, {}, "20,000"),
        ("a\0b", {}, "cannot be stored"),
        ("a\ud800b", {}, "cannot be stored"),
        ("fine", {"active_ms": -1}, "time"),
        ("fine", {"guideline_version": 2}, "guidelines"),
    ],
)
def test_bad_input_is_refused_in_words_and_can_be_mended(session, project, person, prompt, words, fields, says):
    task = writing.claim(session, project.id, person.id)
    sent = said(task, words, **fields)
    with pytest.raises(Invalid, match=says):
        writing.submit(session, project.id, person.id, sent)
    assert prompts.counts(session, project.id).demonstrations == 0
    assert writing.submit(session, project.id, person.id, said(task, "x" * 20_000, key=sent.key)).replayed is False


def test_the_better_answer_is_the_one_that_won_the_most_votes_else_the_newest(session, make):
    project = make.project(votes_wanted=3)
    person = make.person(project)
    policy, prompt = make.policy(project, promote=True), make.prompt(project)
    judges = [make.person(project) for _ in range(3)]
    make.pair(project, policy, prompt)
    newest = max(session.scalars(select(Completion).where(Completion.prompt_id == prompt.id)), key=lambda one: one.id)
    task = writing.claim(session, project.id, person.id)
    assert (task.better.text, task.better.won) == (newest.text, 0)
    texts = {one.id: one.text for one in session.scalars(select(Completion))}
    winner = next(one for one in texts if one != newest.id)
    for i, judge in enumerate(judges):
        [mine] = claims.claim(session, project.id, judge.id, 1)
        wanted = texts[winner] if i else texts[newest.id]
        verdict = Verdict.LEFT if mine.answers[0] == wanted else Verdict.RIGHT
        judgments.submit(session, project.id, judge.id, make.submission(mine, verdict))
    task = writing.claim(session, project.id, person.id)
    assert (task.better.completion_id, task.better.text, task.better.won) == (winner, texts[winner], 2)
    receipt = writing.submit(session, project.id, person.id, said(task, "Better still.", edited_from_id=winner))
    made = session.get_one(Demonstration, receipt.demonstration_id)
    completion = session.get_one(Completion, made.completion_id)
    assert (completion.origin, completion.edited_from_id) == (Origin.EDITED, winner)


def test_an_answer_of_another_prompt_is_nothing_to_start_from(session, make, project, person, prompt):
    other = make.prompt(project, "another")
    make.pair(project, make.policy(project), other)
    foreign = session.scalars(select(Completion).where(Completion.prompt_id == other.id)).first()
    people = [person, make.person(project)]
    tasks = {task.prompt_id: (one, task) for one in people if (task := writing.claim(session, project.id, one.id))}
    holder, task = tasks[prompt.id]
    for wrong in (foreign.id, new_id()):
        with pytest.raises(NotFound):
            writing.submit(session, project.id, holder.id, said(task, edited_from_id=wrong))


def test_train_and_held_out_prompts_are_handed_out_in_their_natural_proportion(session, make):
    project = make.project(heldout_share=0.5)
    for i in range(40):
        make.prompt(project, f"question {i}")
    sides = [
        session.get_one(Prompt, writing.claim(session, project.id, make.person(project).id).prompt_id).split
        for _ in range(40)
    ]
    assert sorted(sides) == sorted(session.scalars(select(Prompt.split).where(Prompt.project_id == project.id)))
    assert 3 <= sides[:20].count(Split.HELDOUT) <= 17


def test_a_prompt_with_a_demonstration_from_elsewhere_waits_for_nobody(session, make, project, person):
    prompts.add_demonstrations(session, project, [([{"role": "user", "content": "q"}], "a")], "file")
    assert writing.claim(session, project.id, person.id) is None


def test_a_draft_of_an_earlier_round_says_nothing_about_a_revision(session, project, person, prompt, write):
    old = write(person, "Stored.")
    drafts.save(session, project.id, person.id, prompt.id, {"text": "Stor", "base": ""})
    assert writing.revise(session, project.id, person.id, old.id).text == "Stored."
    drafts.save(session, project.id, person.id, prompt.id, {"text": "Stored anew", "base": str(old.id)})
    assert writing.revise(session, project.id, person.id, old.id).text == "Stored anew"
    drafts.save(session, project.id, person.id, prompt.id, json.loads('{"text": 1, "base": [], "edited_from_id": {}}'))
    assert writing.revise(session, project.id, person.id, old.id).text == "Stored."
