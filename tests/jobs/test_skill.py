"""The fit of annotators' skill: people of known reliability, and the thread that does it."""

import random
import threading
from collections import Counter

import pytest

from app.core.vocabulary import Verdict
from app.jobs import skill, skill_fit
from app.store import claims, gold, judgments
from app.store.db import make_engine, session_factory
from app.store.models import Comparison, Skill

# The spammer presses any key; the biased one takes the left side two times in three, whatever is there.
RELIABLE = {"anna": 0.95, "ben": 0.9, "carl": 0.8, "dora": 0.75, "spammer": 0.5, "biased": 0.65}


def votes_of(seed: int, pairs: int, each: int, gold_share: float = 0.0):
    """Votes on pairs whose truth is known, sides shuffled: (said, gold, how often each was right)."""
    dice = random.Random(seed)
    said, known, right = [], {}, Counter()
    for i in range(pairs):
        truth = dice.random() < 0.5
        if dice.random() < gold_share:
            known[str(i)] = truth
        for person in dice.sample(sorted(RELIABLE), each):
            left_is_first = dice.random() < 0.5
            if person == "biased" and dice.random() < 0.67:
                first = left_is_first
            else:
                first = truth if dice.random() < RELIABLE[person] else not truth
            right[person] += first == truth
            said.append((str(i), person, first))
    return said, known, right


def test_the_estimates_rank_people_rightly_and_the_intervals_cover_what_they_are():
    covered, ranked = 0, 0
    # The biased one follows the truth in a third of 65 %, and by the shuffle in half of the rest.
    truth = RELIABLE | {"biased": 0.33 * 0.65 + 0.67 * 0.5}
    for seed in range(4):
        said, known, _ = votes_of(seed, 240, 3, gold_share=0.1 * (seed % 2))
        found = {one["account_id"]: one for one in skill_fit.estimates(said, known)}
        assert set(found) == set(RELIABLE)
        covered += sum(found[name]["low"] <= truth[name] <= found[name]["high"] for name in truth)
        order = sorted(found, key=lambda name: -found[name]["skill"])
        ranked += order.index("anna") < order.index("carl") and set(order[-2:]) == {"spammer", "biased"}
        assert all(0.02 < one["high"] - one["low"] < 0.3 for one in found.values())
    assert ranked == 4
    assert covered >= 21  # of 24; 95 % would be 23


def test_a_few_votes_or_lone_ones_are_no_estimate():
    said, _, _ = votes_of(1, 200, 3)
    few = [("1", "newcomer", True), ("2", "newcomer", False)]
    lone = [(f"alone-{i}", "hermit", True) for i in range(50)]
    assert {one["account_id"] for one in skill_fit.estimates(said + few + lone, {})} == set(RELIABLE)
    assert skill_fit.estimates(lone, {}) == []


def test_known_answers_alone_tell_who_is_right():
    said = [(f"g{i}", "sure", i % 2 == 0) for i in range(20)] + [(f"g{i}", "lost", i % 4 < 2) for i in range(20)]
    known = {f"g{i}": i % 2 == 0 for i in range(20)}
    sure, lost = sorted(skill_fit.estimates(said, known), key=lambda one: -one["skill"])
    # By hand: a flat prior and 20 of 20 is a Beta(21, 1), its median 0.5 ** (1 / 21); 10 of 20 is symmetric.
    assert sure["account_id"] == "sure"
    assert sure["skill"] == pytest.approx(0.5 ** (1 / 21), abs=0.002)
    assert lost["skill"] == pytest.approx(0.5, abs=0.002)
    assert (lost["low"], lost["high"]) == pytest.approx((0.298, 0.702), abs=0.003)


def test_the_worker_fits_once_for_what_is_new_and_keeps_it(database_url, make_with):
    engine = make_engine(database_url)
    sessions = session_factory(engine)
    fitting = skill.Skills(sessions, threading.Event())
    with sessions.begin() as s:
        make = make_with(s)
        project = make.project(votes_wanted=3)
        policy = make.policy(project, promote=True)
        people = [make.person(project) for _ in range(3)]
        for _ in range(14):
            make.pair(project, policy)
        for number, person in enumerate(people):
            for task in claims.claim(s, project.id, person.id, 14):
                left = task.order[0] == 0  # the first answer is the better one; the third person always says left
                verdict = Verdict.LEFT if number == 2 or left else Verdict.RIGHT
                judgments.submit(s, project.id, person.id, make.submission(task, verdict))
        first = s.query(Comparison).filter_by(project_id=project.id).first()
        gold.make_gold(s, project.id, first.id, [[0], [1]], "it answers", False, None)
    assert fitting.round() == 1
    with sessions() as s:
        found = {one.account_id: one for one in s.query(Skill)}
        assert set(found) == {person.id for person in people}
        good, other, biased = (found[person.id] for person in people)
        assert min(good.skill, other.skill) > 0.8 > 0.75 > biased.skill
        assert (good.judgments, good.model) == (14, skill_fit.MODEL)
    assert fitting.round() == 0
    engine.dispose()
