"""The hidden taste of the simulated annotators: what a fair reader of support letters would prefer, in nine criteria.

Three of them can only be judged beside the customer's message: the right item, the right order number, a step that fits
the trouble. Training never sees this module; it only sees who preferred what. The weights are a matter of sense, not of
tuning: getting the customer's facts right weighs about as much as the manner. A change of them needs a decision record
and fresh figures (docs/rehearsal.md).
"""

import math
import random
from collections.abc import Mapping

from app.policy.checker import Check, check

NOISE = 0.8
"""How unsteady the simulated hand is: the logistic noise's scale, in the taste's own units."""

CRITERIA = (
    "right_item",
    "right_order",
    "fitting_step",
    "apology",
    "courtesy",
    "respect",
    "to_the_point",
    "care",
    "substance",
)


def _criteria(c: Check) -> dict[str, float]:
    asks_in_vain = c.asks_order and c.asks_known_order
    return {
        # Beside the customer's message.
        "right_item": 0.5 if c.right_item else -2.0 if c.names_item else 0.0,
        "right_order": 1.0
        if c.right_order
        else -2.0
        if c.names_order
        else -0.5
        if asks_in_vain
        else 0.5 * c.asks_order,
        "fitting_step": 1.0 if c.step_fits else -1.0 if c.offers_step else 0.0,
        # From the reply alone.
        "apology": 0.6 * c.apologises,
        "courtesy": 0.3 * c.greets + 0.3 * c.thanks + 0.3 * (c.closes or c.signs),
        "respect": -(1.5 + 0.5 * c.rude) if c.rude else 0.0,
        "to_the_point": -0.7 * c.asides - 0.03 * max(0, c.words - 40),
        "care": -0.5 * c.sloppy - 0.8 * c.unknown_sentences,
        "substance": -0.5 * c.vague - 0.3 * c.curt,
    }


def criteria(prompt: str, reply: str) -> Mapping[str, float]:
    """What each criterion adds to the reply's utility, by name."""
    return _criteria(check(prompt, reply))


def utility(prompt: str, reply: str) -> float:
    """How much the taste likes a reply to a prompt: the sum of the criteria."""
    return sum(criteria(prompt, reply).values())


def noiseless(prompt: str, first: str, second: str) -> float:
    """1 where the first reply is better by the taste, 0 where the second is, one half where they are as good."""
    a, b = utility(prompt, first), utility(prompt, second)
    return 0.5 if math.isclose(a, b, abs_tol=1e-9) else float(a > b)


def prefers_first(rng: random.Random, prompt: str, first: str, second: str) -> bool:
    """A noisy judgment: Bradley and Terry's probability of the difference in utility over the noise."""
    margin = (utility(prompt, first) - utility(prompt, second)) / NOISE
    return rng.random() < 1.0 / (1.0 + math.exp(-margin))
