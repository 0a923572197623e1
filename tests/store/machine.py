"""Everything that people and admins do to judging, in any order, and what must hold all the while.

`NEVER` also serves whoever wants to look at a store after a load: tests with threads, and benchmarks.
"""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import text, update

from app.core.errors import Conflict, NotFound
from app.core.vocabulary import DrawReason, Role, Verdict
from app.store import accounts, checkpoints, claims, comparisons, judgments
from app.store.models import Assignment, Candidate, Comparison, Gold, new_id
from app.store.standing import standing

PEOPLE = st.integers(min_value=0, max_value=2)
VERDICTS = st.sampled_from(list(Verdict))

# Each row says how something that must never happen would look; empty means that it did not.
NEVER = {
    "more counted judgments than wanted votes": """
        SELECT c.id FROM comparison c JOIN slot s ON s.comparison_id = c.id AND s.state = 'filled'
        GROUP BY c.id HAVING count(*) > c.votes_wanted
    """,
    "more or fewer open slots than wanted votes": """
        SELECT c.id FROM comparison c JOIN slot s ON s.comparison_id = c.id WHERE c.state <> 'retired'
        GROUP BY c.id HAVING count(*) FILTER (WHERE s.state <> 'retired') <> c.votes_wanted
        UNION ALL SELECT c.id FROM comparison c
        WHERE c.votes_wanted > 0 AND NOT EXISTS (SELECT FROM slot s WHERE s.comparison_id = c.id)
    """,
    "a vote that is still to be had though the project has enough, or too few of them": """
        SELECT c.id FROM comparison c JOIN project p ON p.id = c.project_id
        WHERE c.state = 'open' AND c.votes_wanted > 0 AND c.reason <> 'chat' AND (
            c.votes_wanted < p.votes_wanted OR c.votes_wanted > p.votes_wanted AND EXISTS (
                SELECT FROM slot s WHERE s.comparison_id = c.id AND s.state = 'free'
            )
        )
    """,
    "a slot of another priority than its comparison": """
        SELECT c.id FROM comparison c JOIN slot s ON s.comparison_id = c.id
        WHERE c.state = 'open' AND c.priority <> s.priority
    """,
    "a check that counts as a vote": """
        SELECT c.id FROM comparison c JOIN slot s ON s.comparison_id = c.id WHERE c.reason IN ('gold', 'repeat')
        UNION ALL SELECT c.id FROM comparison c JOIN judgment j ON j.comparison_id = c.id
        JOIN judgment_revision r ON r.judgment_id = j.id WHERE c.reason IN ('gold', 'repeat') AND r.counted
    """,
    "two rows where one belongs": """
        SELECT 1 FROM slot GROUP BY comparison_id, position HAVING count(*) > 1
        UNION ALL SELECT 1 FROM candidate GROUP BY comparison_id, position HAVING count(*) > 1
        UNION ALL SELECT 1 FROM candidate GROUP BY comparison_id, completion_id HAVING count(*) > 1
        UNION ALL SELECT 1 FROM judgment GROUP BY id HAVING count(*) > 1
        UNION ALL SELECT 1 FROM judgment_revision GROUP BY judgment_id, revision HAVING count(*) > 1
        UNION ALL SELECT 1 FROM judgment_revision GROUP BY account_id, key HAVING count(*) > 1
        UNION ALL SELECT 1 FROM gold GROUP BY comparison_id HAVING count(*) > 1
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


LEASED = text(
    "SELECT comparison_id FROM assignment WHERE project_id = :project AND account_id = :account"
    " AND state = 'leased' AND lease_expires_at > now()"
)
PRIORITIES = text("SELECT priority FROM comparison WHERE id = ANY(:comparisons) AND votes_wanted > 0")
UNMET = text(
    """
    SELECT c.priority FROM comparison c
    WHERE c.project_id = :project AND EXISTS (SELECT FROM slot s WHERE s.comparison_id = c.id AND s.state = 'free')
        AND NOT EXISTS (SELECT FROM assignment a WHERE a.comparison_id = c.id AND a.account_id = :account)
    """
)


class Judging(RuleBasedStateMachine):
    """Two annotators and an admin on a handful of comparisons with one to three wanted votes."""

    make = None

    @initialize(wanted=st.integers(min_value=1, max_value=2))
    def begin(self, wanted):
        self.s = self.make.s
        self.savepoint = self.s.begin_nested()
        self.s.execute(text("SELECT setseed(0.5)"))
        self.project = self.make.project(votes_wanted=wanted)
        self.policy = self.make.policy(self.project, promote=True)
        self.admin = self.make.person(self.project, Role.ADMIN)
        self.people = [self.make.person(self.project) for _ in range(2)]
        self.people.append(self.make.person(self.project, Role.ADMIN))
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
        person = self.people[who]
        with contextlib.suppress(NotFound):
            why = standing(self.s, self.project.id, person.id).why
            before = self.leased(person)
            free = sorted(self.s.scalars(UNMET, {"project": self.project.id, "account": person.id}), reverse=True)
            met = set(self.shown[who])
            tasks = claims.claim(self.s, self.project.id, person.id, count)
            for task in tasks:
                self.shown[who][task.comparison_id] = task
            handed = {task.comparison_id for task in tasks} - before
            assert not (why and handed), f"somebody who may not judge ({why}) was handed something new"
            drawn = self.s.scalars(PRIORITIES, {"comparisons": list(handed - met)})
            best = sorted(drawn, reverse=True)
            # More than were free before come from leases that had run out.
            assert len(best) > len(free) or best == free[: len(best)], "something of a higher priority was passed over"
            if handed and self.project.cap:
                given = self.project.cap - standing(self.s, self.project.id, person.id).left
                assert given + len(self.leased(person)) <= self.project.cap, "more is held than the cap leaves room for"

    def leased(self, person):
        return set(self.s.scalars(LEASED, {"project": self.project.id, "account": person.id}))

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

    @rule(who=PEOPLE, count=st.integers(min_value=1, max_value=3), verdict=VERDICTS)
    def work(self, who, count, verdict):
        """What people do most: take what is there and judge one of it."""
        self.claim(who, count)
        self.submit(who, len(self.shown[who]) - 1, verdict)

    @rule(wanted=st.integers(min_value=1, max_value=3), which=st.integers(min_value=0))
    def distribute(self, wanted, which):
        """Wanted votes change for all comparisons that are open, or a priority for one."""
        if which % 2:
            comparisons.want_votes(self.s, self.project.id, wanted, self.admin.id)
        else:
            query = text("SELECT id FROM comparison WHERE project_id = :p ORDER BY id")
            every = list(self.s.scalars(query, {"p": self.project.id}))
            one = every[which // 2 % len(every)]
            comparisons.prioritise(self.s, self.project.id, Comparison.id == one, wanted - 2)

    @rule(
        who=PEOPLE,
        how=st.sampled_from(["on", "on", "paused", "deactivated", "admins", "capped"]),
        cap=st.integers(min_value=1, max_value=4),
    )
    def admit(self, who, how, cap):
        """Somebody, or everybody, may judge no more, or may again."""
        if how == "deactivated":
            with contextlib.suppress(NotFound):
                accounts.deactivate(self.s, self.project.id, self.people[who].id, self.admin.id)
        paused = "now()" if how == "paused" else "NULL"
        query = text(f"UPDATE membership SET paused_at = {paused} WHERE account_id = :account")
        self.s.execute(query, {"account": self.people[who].id})
        self.project.cap, self.project.admins_judge = cap if how == "capped" else None, how != "admins"
        self.s.flush()

    @rule(who=PEOPLE, which=st.none() | st.integers(min_value=0))
    def check(self, who, which):
        """Somebody is handed gold or, of what they have judged, a repeat: an assignment without a slot."""
        mine = {"p": self.project.id, "a": self.people[who].id}
        query = text("SELECT comparison_id FROM judgment WHERE project_id = :p AND account_id = :a ORDER BY 1")
        judged = list(self.s.scalars(query, mine))
        if which is None:
            made = self.make.pair(self.project, self.policy, reason=DrawReason.GOLD)
            self.s.add(Gold(comparison_id=made.id, project_id=self.project.id, tiers=[[0], [1]]))
        elif judged:
            made = self.again(judged[which % len(judged)])
        else:
            return
        self.s.flush()
        ids = {"project_id": self.project.id, "comparison_id": made.id, "account_id": self.people[who].id}
        self.s.add(Assignment(**ids, lease_expires_at=text("now() + interval '10 minutes'")))
        self.s.flush()
        self.shown[who] |= {task.comparison_id: task for task in claims.tasks(self.s, mine["p"], mine["a"], [made.id])}

    def again(self, comparison_id):
        first = self.s.get_one(Comparison, comparison_id)
        made = Comparison(
            id=new_id(),
            project_id=first.project_id,
            prompt_id=first.prompt_id,
            reason=DrawReason.REPEAT,
            repeat_of=comparison_id if first.repeat_of is None else first.repeat_of,
            probability=1.0,
            votes_wanted=0,
        )
        self.s.add(made)
        self.s.flush()
        for one in self.s.query(Candidate).filter_by(comparison_id=comparison_id).all():
            ids = {"project_id": one.project_id, "prompt_id": one.prompt_id, "completion_id": one.completion_id}
            self.s.add(Candidate(comparison_id=made.id, position=one.position, **ids))
        return made

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


def failure_of(make):
    """What the machine finds, in words; a group where ids, which are new each time, made it fail in two ways."""
    try:
        run_machine(make, examples=30, phases=[Phase.generate], derandomize=True)
    except ExceptionGroup as group:
        return repr(group.exceptions)
    except Exception as error:
        return repr(error)
    return "nothing"
