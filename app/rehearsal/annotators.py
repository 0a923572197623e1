"""Simulated annotators: people with one hidden taste and an unsteady hand, who judge through the product's own pages.

Each reads the two answers from the HTML, as a person reads them from the screen, and sends a verdict for the sides as
shown. Between two answers the better one by the taste is chosen with the probability of Bradley and Terry.
"""

import random
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from app.rehearsal.browser import Browser, RehearsalError, Task, read_tasks, visible_text
from app.rehearsal.taste import prefers_first

PASSWORD_BYTES = 12
EMPTY_POOL_PATIENCE_S = 300.0


@dataclass(frozen=True)
class Person:
    """An account to judge with."""

    username: str
    password: str = field(repr=False)


@dataclass
class Judged:
    """What one simulated annotator did."""

    person: str
    judgments: int = 0
    left: int = 0
    waited_s: float = 0.0
    seconds: float = 0.0


def invite_people(owner: Browser, slug: str, count: int, seed: int) -> list[Person]:
    """Invites and signs up `count` annotators; their names are unique, so that it can be done again."""
    tag = f"{random.Random(seed).randrange(16**4):04x}-{uuid.uuid4().hex[:6]}"  # noqa: S311
    people = [Person(f"sim-{tag}-{i}", uuid.uuid4().hex[: 2 * PASSWORD_BYTES]) for i in range(count)]
    for person in people:
        with Browser(owner.url) as browser:
            browser.join(owner.invite(slug), person.username, person.password)
    return people


class Annotator:
    """One person at the judging page."""

    def __init__(self, url: str, slug: str, person: Person, seed: int, pause_s: float = 0.0) -> None:
        self.browser = Browser(url)
        self.slug = slug
        self.person = person
        self.pause_s = pause_s
        self.rng = random.Random(seed)  # noqa: S311
        self.tasks: list[Task] = []
        self.report = Judged(person.username)

    def judge(self, count: int, on_judgment: Callable[[], None] | None = None) -> Judged:
        """Judges `count` comparisons, or raises RehearsalError when the pool stays empty for five minutes."""
        started = time.monotonic()
        with self.browser:
            self.browser.sign_in(self.person.username, self.person.password)
            for _ in range(count):
                self._submit(self._next_task())
                if on_judgment is not None:
                    on_judgment()
                if self.pause_s:
                    time.sleep(self.pause_s)
        self.report.seconds = time.monotonic() - started
        return self.report

    def _next_task(self) -> Task:
        began = time.monotonic()
        while not self.tasks:
            page = self.browser.get(f"/p/{self.slug}/judge")
            self.tasks = read_tasks(page.text)
            if self.tasks:
                break
            if time.monotonic() - began > EMPTY_POOL_PATIENCE_S:
                raise RehearsalError(f"no pair came to {self.person.username}: {visible_text(page.text)}")
            time.sleep(0.25)
        self.report.waited_s += time.monotonic() - began
        return self.tasks.pop(0)

    def _submit(self, task: Task) -> None:
        left = prefers_first(self.rng, task.prompt, task.answers["left"], task.answers["right"])
        form = {
            "comparison_id": task.comparison,
            "key": str(uuid.uuid4()),
            "verdict": "left" if left else "right",
            "order": task.order,
            "first_key_ms": str(self.rng.randint(1500, 6000)),
            "active_ms": str(self.rng.randint(2000, 9000)),
            "held": ",".join(t.comparison for t in self.tasks),
        }
        page = self.browser.post(f"/p/{self.slug}/judgments", form, fragment=True)
        known = {task.comparison, *(t.comparison for t in self.tasks)}
        self.tasks += [t for t in read_tasks(page.text) if t.comparison not in known]
        self.report.judgments += 1
        self.report.left += left


def judge_all(
    url: str,
    slug: str,
    people: list[Person],
    judgments: int,
    seed: int,
    pause_s: float = 0.0,
    on_judgment: Callable[[], None] | None = None,
) -> list[Judged]:
    """All people judge at the same time until `judgments` are sent, shared as evenly as they divide."""
    shares = [judgments // len(people) + (i < judgments % len(people)) for i in range(len(people))]
    annotators = [Annotator(url, slug, p, seed * 1009 + i, pause_s) for i, p in enumerate(people)]
    with ThreadPoolExecutor(max_workers=len(people)) as pool:
        running = [pool.submit(a.judge, n, on_judgment) for a, n in zip(annotators, shares, strict=True)]
        return [r.result() for r in running]


def simulate(
    url: str, slug: str, admin: Person, people: int, judgments: int, seed: int, rate: float = 0.0
) -> list[Judged]:
    """`pairwright simulate`: signs in as `admin`, invites annotators, and has them judge.

    `rate` is judgments per second over all people; 0 means as fast as the pages answer.
    """
    with Browser(url) as owner:
        owner.sign_in(admin.username, admin.password)
        invited = invite_people(owner, slug, people, seed)
    return judge_all(url, slug, invited, judgments, seed, people / rate if rate > 0 else 0.0)
