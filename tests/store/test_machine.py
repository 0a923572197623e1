"""Claim, submit, repeat, late, skip, expire, undo, change, check, more and fewer votes: in any order, and at once."""

import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text

from app.core.errors import Conflict
from app.core.vocabulary import Verdict
from app.store import claims, comparisons, judgments
from app.store.db import make_engine, session_factory
from app.store.models import Comparison
from tests.store.machine import NEVER, run_machine


def test_the_invariants_hold_through_any_sequence(make):
    run_machine(make, examples=15)


def test_many_people_at_once_break_nothing_either(database_url, make_with):
    """Twelve connections that commit, while two admins change votes, priorities and leases, until nothing is left."""
    engine = make_engine(database_url, pool_size=8)
    sessions = session_factory(engine)
    with sessions.begin() as s:
        make = make_with(s)
        project = make.project(votes_wanted=2)
        policy = make.policy(project)
        people = [make.person(project).id for _ in range(8)]
        for _ in range(30):
            make.pair(project, policy)
    over = threading.Event()

    def work(number):
        chance, account_id, told = random.Random(number), people[number % 8], []
        while True:
            # Asked before the claim: what comes free later is another's to find.
            last = over.is_set()
            with sessions.begin() as s:
                tasks = claims.claim(s, project.id, account_id, count=2)
            if not tasks:
                if last:
                    return told
                over.wait(0.01)
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
                if act > 0.9:
                    with contextlib.suppress(Conflict), sessions.begin() as s:
                        judgments.undo(s, project.id, account_id)

    def change(number):
        chance = random.Random(number)
        for _ in range(25):
            with sessions.begin() as s:
                comparisons.want_votes(s, project.id, chance.randint(1, 4), None)
            with sessions.begin() as s:
                priority = chance.randint(-1, 1)
                comparisons.prioritise(s, project.id, Comparison.votes_wanted == chance.randint(1, 4), priority)
            with sessions.begin() as s:  # a lease runs out under somebody's hands
                which = "SELECT ctid FROM assignment WHERE state = 'leased' LIMIT 2 FOR UPDATE SKIP LOCKED"
                s.execute(text(f"UPDATE assignment SET lease_expires_at = now() WHERE ctid = ANY(ARRAY({which}))"))
            with sessions.begin() as s:
                claims.expire_leases(s, project.id)
        return set()

    # Twelve threads: the first four people have two tabs open.
    with ThreadPoolExecutor(14) as pool:
        working = [pool.submit(work, number) for number in range(12)]
        try:
            for done in [pool.submit(change, number) for number in range(2)]:
                done.result()
            with sessions.begin() as s:
                comparisons.want_votes(s, project.id, 3, None)
        finally:
            over.set()
        told = {receipt for one in working for receipt in one.result()}
    with sessions() as s:
        for what, query in NEVER.items():
            assert s.execute(text(query)).all() == [], what
        stored = "SELECT account_id, key, judgment_id, revision FROM judgment_revision WHERE NOT withdrawn"
        assert sorted(told) == sorted(tuple(row) for row in s.execute(text(stored)))
        votes = "SELECT count(*) FILTER (WHERE state = 'filled') FROM slot GROUP BY comparison_id"
        filled = list(s.scalars(text(votes)))
    engine.dispose()
    # A vote stays open only where everybody had skipped or judged the comparison.
    assert len(filled) == 30
    assert sum(min(n, 3) for n in filled) >= 75
