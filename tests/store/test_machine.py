"""Claim, submit, repeat, late, skip, expire, undo, change, deactivate, in any order: what must hold always holds."""

import contextlib
import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import text, update

from app.core.errors import Conflict, NotFound
from app.core.vocabulary import Role, Verdict
from app.store import accounts, checkpoints, claims, judgments
from app.store.db import make_engine, session_factory
from app.store.models import Assignment, Project

PEOPLE = st.integers(min_value=0, max_value=2)
VERDICTS = st.sampled_from(list(Verdict))

# Each row says how something that must never happen would look; empty means that it did not.
NEVER = {
    "more counted judgments than wanted votes": """
        SELECT c.id FROM comparison c JOIN slot s ON s.comparison_id = c.id AND s.state = 'filled'
        GROUP BY c.id HAVING count(*) > c.votes_wanted
    """,
    "more slots than wanted votes": """
        SELECT c.id FROM comparison c JOIN slot s ON s.comparison_id = c.id
        GROUP BY c.id HAVING count(*) <> c.votes_wanted
    """,
    "somebody twice on a comparison": """
        SELECT 1 FROM assignment GROUP BY comparison_id, account_id HAVING count(*) > 1
        UNION ALL SELECT 1 FROM judgment GROUP BY comparison_id, account_id HAVING count(*) > 1
        UNION ALL SELECT 1 FROM slot WHERE holder_id IS NOT NULL GROUP BY comparison_id, holder_id HAVING count(*) > 1
    """,
    "a filled slot without a standing judgment": """
        SELECT 1 FROM slot s LEFT JOIN judgment j ON j.comparison_id = s.comparison_id AND j.account_id = s.holder_id
        WHERE s.state = 'filled' AND (j.id IS NULL OR j.withdrawn)
    """,
    "a slot that is leased by somebody who holds no lease": """
        SELECT 1 FROM slot s JOIN assignment a ON a.comparison_id = s.comparison_id AND a.account_id = s.holder_id
        WHERE (s.state = 'leased' AND a.state <> 'leased') OR (s.state = 'filled' AND a.state <> 'judged')
    """,
    "a judgment that stands while its meeting is not over": """
        SELECT 1 FROM judgment j JOIN assignment a USING (comparison_id, account_id)
        WHERE j.withdrawn = (a.state = 'judged')
    """,
    "a head that is not at its newest revision": """
        SELECT 1 FROM judgment j
        WHERE j.revision <> (SELECT count(*) FROM judgment_revision r WHERE r.judgment_id = j.id) OR NOT EXISTS (
            SELECT FROM judgment_revision r
            WHERE r.judgment_id = j.id AND r.revision = j.revision AND r.withdrawn = j.withdrawn
        )
    """,
    "a slot that is free while a comparison is retired": """
        SELECT 1 FROM slot s JOIN comparison c ON c.id = s.comparison_id
        WHERE s.state = 'free' AND c.state = 'retired'
    """,
}


class Judging(RuleBasedStateMachine):
    """Three people on a handful of comparisons with one or two wanted votes."""

    make = None

    @initialize(wanted=st.integers(min_value=1, max_value=2))
    def begin(self, wanted):
        self.s = self.make.s
        self.savepoint = self.s.begin_nested()
        self.s.execute(text("SELECT setseed(0.5)"))
        self.project = self.make.project(votes_wanted=wanted)
        self.policy = self.make.policy(self.project, promote=True)
        self.admin = self.make.person(self.project, Role.ADMIN)
        self.people = [self.make.person(self.project) for _ in range(3)]
        self.shown = [{} for _ in self.people]  # every task that was ever on somebody's screen
        self.acknowledged = {}  # (person, key) -> (submission, receipt)
        for _ in range(3):
            self.make.pair(self.project, self.policy)

    def teardown(self):
        if hasattr(self, "savepoint"):
            self.s.expunge_all()
            self.savepoint.rollback()

    @rule()
    def refill(self):
        self.make.pair(self.project, self.policy)

    @rule(who=PEOPLE, count=st.integers(min_value=1, max_value=3))
    def claim(self, who, count):
        with contextlib.suppress(NotFound):
            for task in claims.claim(self.s, self.project.id, self.people[who].id, count):
                self.shown[who][task.comparison_id] = task

    @rule(who=PEOPLE, which=st.integers(min_value=0), verdict=VERDICTS)
    def submit(self, who, which, verdict):
        """From a page however old: in time, late, a changed vote, after an undo."""
        if self.shown[who]:
            task = list(self.shown[who].values())[which % len(self.shown[who])]
            submission = self.make.submission(task, verdict)
            with contextlib.suppress(Conflict):  # it was skipped
                receipt = judgments.submit(self.s, self.project.id, self.people[who].id, submission)
                assert not receipt.replayed
                self.acknowledged[who, submission.key] = submission, receipt

    @rule(which=st.integers(min_value=0), another=st.booleans())
    def repeat(self, which, another):
        """An answer was lost and the page sends again; or a bug sends another body under the same key."""
        if self.acknowledged:
            (who, _), (submission, receipt) = list(self.acknowledged.items())[which % len(self.acknowledged)]
            if another:
                changed = replace(submission, active_ms=12345)
                with pytest.raises(Conflict):
                    judgments.submit(self.s, self.project.id, self.people[who].id, changed)
            else:
                again = judgments.submit(self.s, self.project.id, self.people[who].id, submission)
                assert again == replace(receipt, replayed=True)

    @rule(who=PEOPLE, which=st.integers(min_value=0))
    def skip(self, who, which):
        if self.shown[who]:
            task = list(self.shown[who].values())[which % len(self.shown[who])]
            with contextlib.suppress(Conflict):
                judgments.skip(self.s, self.project.id, self.people[who].id, task.comparison_id)

    @rule(who=PEOPLE)
    def undo(self, who):
        with contextlib.suppress(Conflict, NotFound):
            task = judgments.undo(self.s, self.project.id, self.people[who].id)
            assert task.comparison_id in self.shown[who]

    @rule(who=PEOPLE, sweep=st.booleans())
    def run_out(self, who, sweep):
        self.s.execute(
            update(Assignment)
            .where(Assignment.account_id == self.people[who].id, Assignment.state == "leased")
            .values(lease_expires_at=text("now() - interval '1 second'")),
            execution_options={"synchronize_session": False},
        )
        if sweep:
            claims.expire_leases(self.s)

    @rule()
    def promote(self):
        self.policy = self.make.policy(self.project)
        checkpoints.promote(self.s, self.project.id, self.policy.id, None)

    @rule(who=PEOPLE)
    def deactivate(self, who):
        with contextlib.suppress(NotFound):
            accounts.deactivate(self.s, self.project.id, self.people[who].id, self.admin.id)

    @rule(wanted=st.integers(min_value=1, max_value=2))
    def want(self, wanted):
        """Wanted votes change for the comparisons to come."""
        self.s.get_one(Project, self.project.id).votes_wanted = wanted
        self.s.flush()

    @invariant()
    def what_must_never_happen_did_not(self):
        if hasattr(self, "savepoint"):
            for what, query in NEVER.items():
                assert self.s.execute(text(query)).all() == [], what

    @invariant()
    def every_acknowledged_key_is_there_exactly_once(self):
        if hasattr(self, "savepoint"):
            query = text("SELECT account_id, key, judgment_id, revision FROM judgment_revision WHERE NOT withdrawn")
            stored = sorted((row.account_id, row.key, row.judgment_id, row.revision) for row in self.s.execute(query))
            told = sorted(
                (self.people[who].id, key, receipt.judgment_id, receipt.revision)
                for (who, key), (_, receipt) in self.acknowledged.items()
            )
            assert stored == told


def run_machine(make, examples, phases=tuple(Phase), derandomize=False):
    machine = type("Machine", (Judging,), {"make": make})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            database=None,
            report_multiple_bugs=False,
            derandomize=derandomize,
        ),
    )


def test_the_invariants_hold_through_any_sequence(make):
    run_machine(make, examples=15)


def test_without_its_unique_index_and_its_filter_the_same_sequences_fail(make, session, monkeypatch):
    """The twin: the machine is able to notice. With the index alone back in place, the database refuses instead."""
    filter_of_seen = (
        "AND NOT EXISTS (\n                SELECT FROM assignment a WHERE a.comparison_id = s.comparison_id"
    )
    written = str(claims._TAKE)
    assert filter_of_seen in written
    unfiltered = written.replace(
        filter_of_seen, "AND NOT EXISTS (\n                SELECT FROM assignment a WHERE false"
    )
    monkeypatch.setattr(claims, "_TAKE", text(unfiltered))
    monkeypatch.setattr(claims.random, "random", lambda: 0.0)
    assert "pk_assignment" in failure_of(make)
    session.execute(text("ALTER TABLE assignment DROP CONSTRAINT pk_assignment CASCADE"))
    session.execute(text("DROP INDEX uq_slot_holder"))
    assert re.search("somebody twice|a slot that is leased by somebody", failure_of(make))


def failure_of(make):
    """What the machine finds, in words; a group where ids, which are new each time, made it fail in two ways."""
    try:
        run_machine(make, examples=30, phases=[Phase.generate], derandomize=True)
    except ExceptionGroup as group:
        return repr(group.exceptions)
    except Exception as error:
        return repr(error)
    return "nothing"


def test_many_people_at_once_break_nothing_either(database_url, make_with):
    """Eight connections that commit, on comparisons that want two votes each, until nothing is left to judge."""
    engine = make_engine(database_url, pool_size=8)
    sessions = session_factory(engine)
    with sessions.begin() as s:
        make = make_with(s)
        project = make.project(votes_wanted=2)
        policy = make.policy(project)
        people = [make.person(project).id for _ in range(8)]
        for _ in range(20):
            make.pair(project, policy)

    def work(number):
        chance, account_id, told = random.Random(number), people[number % 8], []
        while True:
            with sessions.begin() as s:
                tasks = claims.claim(s, project.id, account_id, count=2)
            if not tasks:
                return told
            for task in tasks:
                act = chance.random()
                if act < 0.1:
                    with contextlib.suppress(Conflict), sessions.begin() as s:  # judged in the other tab
                        judgments.skip(s, project.id, account_id, task.comparison_id)
                    continue
                submission = make.submission(task, chance.choice(list(Verdict)))
                for _ in range(2 if act < 0.3 else 1):
                    with contextlib.suppress(Conflict), sessions.begin() as s:  # skipped in the other tab
                        receipt = judgments.submit(s, project.id, account_id, submission)
                        told.append((account_id, submission.key, receipt.judgment_id, receipt.revision))

    # Twelve threads: the first four people have two tabs open.
    with ThreadPoolExecutor(12) as pool:
        told = {receipt for receipts in pool.map(work, range(12)) for receipt in receipts}
    with sessions() as s:
        for what, query in NEVER.items():
            assert s.execute(text(query)).all() == [], what
        rows = s.execute(text("SELECT account_id, key, judgment_id, revision FROM judgment_revision")).all()
        assert sorted(told) == sorted(tuple(row) for row in rows)
        filled = s.execute(text("SELECT count(*) FROM slot WHERE state = 'filled'")).scalar_one()
        free = s.execute(text("SELECT count(*) FROM slot WHERE state = 'free'")).scalar_one()
    engine.dispose()
    assert filled + free == 40
    assert filled >= 38  # a slot stays free only when everybody had skipped or judged its comparison
