"""Claim, submit, repeat, late, skip, expire, undo, change, check, more and fewer votes: in any order, and at once."""

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text

from app.core.errors import Conflict
from app.core.vocabulary import Verdict
from app.store import claims, judgments
from app.store.db import make_engine, session_factory
from tests.store.machine import NEVER, run_machine


def test_the_invariants_hold_through_any_sequence(make):
    run_machine(make, examples=15)


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
