"""Commands that work, on a project that is there. They run in this process, on a database of the test's own."""

import json
import re
import time

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.core.errors import Conflict, Invalid, NotFound, PairwrightError
from app.core.records import RunError
from app.core.vocabulary import RunStatus, Verdict
from app.settings import get_settings
from app.store import accounts, checkpoints, claims, judgments, passwords, prompts, runs
from app.store.db import make_engine, session_factory
from app.store.models import Comparison


@pytest.fixture
def sessions(monkeypatch, tmp_path, database_url):
    """Sessions on the database that the commands use."""
    monkeypatch.setenv("PAIRWRIGHT_DATABASE_URL", database_url)
    monkeypatch.setenv("PAIRWRIGHT_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    engine = make_engine(database_url)
    yield session_factory(engine)
    engine.dispose()
    get_settings.cache_clear()


@pytest.fixture
def project(sessions, make_with):
    """A project with demonstrations and policies v1 (current) and v2."""
    with sessions.begin() as s:
        make = make_with(s)
        made = make.project()
        rows = [([{"role": "user", "content": f"Where is order {n}?"}], "On its way.") for n in range(30)]
        prompts.add_demonstrations(s, made, rows, "test")
        make.policy(made, promote=True)
        make.policy(made)
    return made


def say(*words: str) -> str:
    """What a command prints; it must succeed."""
    done = CliRunner().invoke(cli, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_an_invitation_is_a_link_that_works_once(sessions, project):
    link = re.search(r"http://127.0.0.1:8000/join/(\S+)", say("invite", "researcher"))
    with sessions.begin() as s:
        assert accounts.invitation(s, link[1]).role == "researcher"
        accounts.accept_invitation(s, link[1], "ada", "correct horse battery")
    with sessions() as s, pytest.raises(Conflict):
        accounts.invitation(s, link[1])


def test_the_owners_link_is_there_until_there_is_an_owner(sessions, project):
    token = say("owner-link").strip().rsplit("/", 1)[1]
    with sessions.begin() as s:
        accounts.create_owner(s, token, "ada", "correct horse battery")
    with pytest.raises(Conflict, match="has its owner"):
        say("owner-link")


def test_votes_and_priorities_change_what_is_open(sessions, project, make_with):
    with sessions.begin() as s:
        make = make_with(s)
        one, other = (make.pair(project, policy).id for policy in (make.policy(project), make.policy(project)))
    assert "now wants 3 votes" in say("votes", "3")
    assert "1 open comparison has priority 7" in say("prioritise", "7", "--policy", "v3")
    assert "1 open comparison has priority -2" in say("prioritise", "--comparison", str(other), "--", "-2")
    assert "0 open comparisons" in say("prioritise", "1", "--policy", "nobody")
    with sessions() as s:
        found = {c.id: (c.votes_wanted, c.priority) for c in s.query(Comparison)}
    assert found == {one: (3, 7), other: (3, -2)}
    with pytest.raises(Invalid, match="Say which"):
        say("prioritise", "1")


def test_promoting_and_rolling_back_by_name(sessions, project):
    assert say("promote", "v2").startswith("v2 writes the next pairs")
    assert re.search(r"\* +v2", say("policies"))
    assert say("rollback").startswith("v1 writes the next pairs again")
    with pytest.raises(NotFound, match="no v9"):
        say("promote", "v9")
    with pytest.raises(Conflict):
        say("promote", "v1")


def test_a_run_is_queued_listed_cancelled_and_resumed_by_its_number(sessions, project):
    assert say("train", "sft", "--set", "max_steps=3", "--seed", "5") == "Run 1 (sft) is in the queue.\n"
    assert re.search(r"1 +sft +queued", say("runs"))
    assert say("cancel", "1") == "Run 1 is cancelled.\n"
    assert say("resume", "1") == "Run 1 is in the queue again.\n"
    with sessions() as s:
        [run] = runs.runs_of(s, project.id)
        assert (run.config["max_steps"], run.seed, run.status) == (3, 5, RunStatus.QUEUED)
    with pytest.raises(NotFound, match="has no run 7"):
        say("cancel", "7")


def test_too_few_judgments_are_refused_with_the_number_that_is_missing(sessions, project):
    for kind in ("reward", "loop"):
        with pytest.raises(Invalid) as refused:
            say("train", kind)
        assert (refused.value.message, refused.value.mend) == (
            "0 judged pairs cannot teach a reward model; 20 can at the least.",
            "Judge 20 more.",
        )


def test_waiting_for_a_run_ends_with_its_end(sessions, project, monkeypatch):
    ends = iter(
        [
            (RunStatus.FINISHED, {"heldout_nll": 1.5}, None),
            (RunStatus.FAILED, {}, RunError(kind="diverged", message="loss became nan.", mend="Lower the rate.")),
        ]
    )

    def worker(_seconds):
        with sessions.begin() as s:
            run = runs.claim_run(s, "test")
            status, metrics, error = next(ends)
            runs.finish(s, run.id, run.attempt, status, metrics, error)

    monkeypatch.setattr("app.cli.training.time.sleep", worker)
    assert "Run 1 (sft) has finished: heldout_nll 1.5." in say("train", "sft", "--wait")
    with pytest.raises(PairwrightError) as failed:
        say("train", "sft", "--wait")
    assert (failed.value.message, failed.value.mend) == ("Run 2 (sft) is failed. loss became nan.", "Lower the rate.")


def test_dpo_is_started_with_its_settings_and_waited_for(sessions, project, make_with, monkeypatch):
    with sessions.begin() as s:
        make, project = make_with(s), s.merge(project)
        person, policy = make.person(project), checkpoints.policies(s, project.id)[1]
        for _ in range(150):
            make.pair(project, policy)
            make.judged(project, person)

    def worker(_seconds):
        with sessions.begin() as s:
            run = runs.claim_run(s, "test")
            assert (run.kind, run.policy_id, run.config["beta"], run.seed) == ("dpo", policy.id, 0.2, 3)
            runs.finish(s, run.id, run.attempt, RunStatus.FINISHED, {"heldout_accuracy": 0.75, "kl": 2.5})

    monkeypatch.setattr("app.cli.training.time.sleep", worker)
    said = say("train", "dpo", "--project", project.slug, "--set", "beta=0.2", "--seed", "3", "--wait")
    assert "Run 1 (dpo) has finished: kl 2.5, heldout_accuracy 0.75." in said


@pytest.mark.parametrize("busy", [False, True])
def test_waiting_where_no_worker_is_says_so_and_goes_on_waiting(sessions, project, monkeypatch, busy):
    looks, pause = [], time.sleep

    def nobody_for_a_while(_seconds):
        pause(0.15)
        looks.append(_seconds)
        if len(looks) == 5:
            with sessions.begin() as s:
                runs.request_cancel(s, project.id, runs.runs_of(s, project.id)[0].id, None)

    if busy:  # with another run: it will come to this one
        say("train", "sft")
        with sessions.begin() as s:
            runs.claim_run(s, "at work")
    monkeypatch.setattr("app.cli.training.NO_WORKER_S", 0.3)
    monkeypatch.setattr("app.cli.training.time.sleep", nobody_for_a_while)
    done = CliRunner().invoke(cli, ["train", "sft", "--wait"])
    assert "is cancelled" in str(done.exception)
    assert len(looks) == 5
    told = " ".join(done.stderr.split())
    assert told.count("No worker has taken run") == (0 if busy else 1)
    assert busy or "pairwright worker" in told


def test_importing_is_all_or_nothing(sessions, project, tmp_path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    rows = [{"prompt": f"Which is {n}?", "chosen": "This one.", "rejected": "Neither."} for n in range(3)]
    good.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad.write_text(good.read_text() + "{not json}\n")
    with pytest.raises(Invalid, match="4"):
        say("import", "preferences", str(bad))
    with sessions() as s:
        assert judgments.summary(s, project.id).pairs == 0
    assert say("import", "preferences", str(good)).startswith("3 lines read, 3 added.")
    with sessions() as s:
        assert judgments.summary(s, project.id).pairs == 3


def test_exporting_writes_the_whole_file_or_none(sessions, project, make_with, tmp_path):
    with sessions.begin() as s:
        make = make_with(s)
        person, policy = make.person(s.merge(project)), checkpoints.policies(s, project.id)[1]
        for _ in range(3):
            make.pair(s.merge(project), policy)
        while tasks := claims.claim(s, project.id, person.id, count=1):
            judgments.submit(s, project.id, person.id, make.submission(tasks[0], Verdict.LEFT))
    out = tmp_path / "judgments.jsonl"
    say("export", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3
    assert set(rows[0]) == {"prompt", "chosen", "rejected"}
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    full = [json.loads(line) for line in say("export", "--format", "full").splitlines()]
    assert len(full) == 3
    assert person.username not in json.dumps(full)


def test_several_projects_must_be_told_apart(sessions, project, make_with):
    with sessions.begin() as s:
        make_with(s).project()
    with pytest.raises(Invalid, match="several projects"):
        say("runs")
    assert "run" in say("runs", "--project", project.slug)
    with pytest.raises(NotFound):
        say("runs", "--project", "nowhere")


def test_settings_are_shown_and_set_with_the_checks_of_the_page(sessions, project):
    assert "votes_wanted=1  # People who judge" in say("project", "show")
    assert say("project", "set", "votes_wanted=3", "cap=50") == "Changed: votes_wanted, cap.\n"
    assert say("project", "set", "cap=") == "Changed: cap.\n"
    for given, word in (("cap=none", "cap"), ("salt=x", "no setting salt"), ("qualify_on=2", "only 0 gold")):
        with pytest.raises(Invalid, match=word):
            say("project", "set", "votes_wanted=9", given)
    shown = say("project", "show")
    assert "votes_wanted=3 " in shown
    assert "cap=  #" in shown


def test_gold_comes_from_a_file_whole_or_not_at_all(sessions, project, tmp_path):
    file = tmp_path / "gold.jsonl"
    line = {"prompt": "Where is order 7?", "answers": ["On its way.", "Who knows."], "explanation": "It answers."}
    good = json.dumps(line | {"qualification": True})
    file.write_text(f"{good}\n{json.dumps(line | {'best': 3})}\n")
    with pytest.raises(Invalid, match="Line 2"):
        say("gold", str(file))
    file.write_text(good + "\n")
    assert say("gold", str(file)) == "Gold comparisons added: 1.\n"
    assert say("project", "set", "qualify_on=1") == "Changed: qualify_on.\n"


def test_guidelines_are_printed_and_a_file_becomes_the_new_version(sessions, project, tmp_path):
    file = tmp_path / "guidelines.md"
    file.write_text("Prefer the reply that names the order.\n")
    assert "version 2" in say("guidelines", str(file))
    assert say("guidelines") == "Prefer the reply that names the order.\n"
    assert "Nothing has changed: version 2" in say("guidelines", str(file))
    file.write_bytes(b"\xff\xfe")
    for wrong, error in ((file, Invalid), (tmp_path / "nothing.md", NotFound)):
        with pytest.raises(error):
            say("guidelines", str(wrong))


def test_the_operator_gets_anybody_back_in_the_owner_too(sessions, project):
    token = say("owner-link").strip().rsplit("/", 1)[1]
    with sessions.begin() as s:
        accounts.create_owner(s, token, "ada", "correct horse battery")
    link = re.search(r"http://127.0.0.1:8000/reset/(\S+)", say("reset-password", "ADA"))
    with sessions.begin() as s:
        assert passwords.use_reset(s, link[1], "a quiet green page").username == "ada"
        assert accounts.authenticate(s, "ada", "a quiet green page") is not None
    with pytest.raises(NotFound, match="nobody called eve"):
        say("reset-password", "eve")
