"""What is measured: an embedded Postgres with a loaded store, and web processes that share one port."""

import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.core.vocabulary import CheckpointKind, ComparisonState, DrawReason, FinishReason, Origin, Role
from app.jobs import supervisor
from app.settings import Settings
from app.store import accounts, checkpoints, claims, credentials, projects
from app.store.bulk import batches, copy, place_prompts
from app.store.models import Account, Candidate, Comparison, Completion, Membership, Project, Slot, new_id

PASSWORD = "a password for the load"
SLUG = "load"
VOTES = 2
COMPARISONS_A_PROMPT = 4
COMPLETION = ["id", "project_id", "prompt_id", "origin", "text", "checkpoint_id", "seed", "temperature", "top_p"]
COMPLETION += ["max_tokens", "chat_template_hash", "finish_reason"]
FLOOR_ACCOUNT = "00000000-0000-7000-8000-{:012d}"
TEXT = "the parcel that you ordered on Tuesday has left our warehouse and will be with you before long"
WORDS = TEXT.split()


def sentence(n: int, words: int) -> str:
    """A text of so many words, another for each n."""
    return f"{n} " + " ".join(WORDS[(n * 7 + i * (1 + n % 5)) % len(WORDS)] for i in range(words)) + "."


def furnish(s: Session, comparisons: int, people: int) -> Project:
    """A project with that many open comparisons, and so many people twice: for the load, and for the floor."""
    project = projects.create_project(s, SLUG, "Load", votes_wanted=VOTES, pool_target=0)
    policy = checkpoints.register(s, project.id, CheckpointKind.POLICY, None, None, str(new_id()), {"w": "00"}, {})
    checkpoints.promote(s, project.id, policy.id, None)
    hashed = credentials.hash_password(PASSWORD)  # one for all: hashing takes its time, and signing in verifies it
    names = [(new_id(), f"load-{i}") for i in range(people + 1)]
    names += [(uuid.UUID(FLOOR_ACCOUNT.format(i)), f"floor-{i}") for i in range(people)]
    copy(
        s,
        Account,
        ["id", "kind", "username", "username_key", "password_hash"],
        [(key, "person", name, name, hashed) for key, name in names],
    )
    copy(
        s,
        Membership,
        ["project_id", "account_id", "role", "pseudonym"],
        [(project.id, key, Role.ANNOTATOR, accounts.new_pseudonym()) for key, _ in names],
    )
    for numbers in batches(range(-(-comparisons // COMPARISONS_A_PROMPT)), 2500):
        add(s, project, policy.id, numbers)
    s.execute(text("UPDATE slot SET draw_key = random() WHERE project_id = :p"), {"p": project.id})
    return project


def add(s: Session, project: Project, policy_id: uuid.UUID, numbers: list[int]) -> None:
    """The comparisons of these prompts."""
    conversations = [[{"role": "user", "content": sentence(n, 30)}] for n in numbers]
    prompts, _ = place_prompts(s, project, conversations, "load")  # type: ignore[arg-type]
    pairs = [
        (new_id(), prompt, n, k)
        for prompt, n in zip(prompts, numbers, strict=True)
        for k in range(COMPARISONS_A_PROMPT)
    ]
    answers = [
        (new_id(), pair, prompt, position, sentence(n * 8 + k * 2 + position, 60))
        for pair, prompt, n, k in pairs
        for position in (0, 1)
    ]
    sampled = (policy_id, 1, 1.0, 1.0, 96, "ab" * 32, FinishReason.STOP)
    copy(
        s,
        Completion,
        COMPLETION,
        [(key, project.id, prompt, Origin.SAMPLED, words, *sampled) for key, _, prompt, _, words in answers],
    )
    columns = ["id", "project_id", "prompt_id", "checkpoint_id", "reason", "probability", "state", "votes_wanted"]
    rest = (policy_id, DrawReason.RANDOM, 1.0, ComparisonState.OPEN, VOTES)
    copy(s, Comparison, columns, [(pair, project.id, prompt, *rest) for pair, prompt, _, _ in pairs])
    copy(
        s,
        Candidate,
        ["comparison_id", "position", "project_id", "prompt_id", "completion_id"],
        [(pair, position, project.id, prompt, key) for key, pair, prompt, position, _ in answers],
    )
    slots = [(pair, position, project.id, "free") for pair, _, _, _ in pairs for position in range(VOTES)]
    copy(s, Slot, ["comparison_id", "position", "project_id", "state"], slots)


def hold_two(s: Session, project_id: uuid.UUID, people: int) -> None:
    """Everybody of the floor holds what the page of an annotator holds."""
    for i in range(people):
        claims.claim(s, project_id, uuid.UUID(FLOOR_ACCOUNT.format(i)), 2)


@contextmanager
def web(settings: Settings, url: str, processes: int, log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """That many web processes on the settings' port, as `serve` starts them."""
    environment = os.environ | {
        "PAIRWRIGHT_HOME": str(settings.home),
        "PAIRWRIGHT_DATABASE_URL": url,
        "PAIRWRIGHT_PORT": str(settings.port),
    }
    started = []
    with supervisor.listening(settings) as listener, log.open("ab") as output:
        command = [sys.executable, "-m", "app", "web", "--fd", str(listener.fileno())]
        for _ in range(processes):
            keep = (listener.fileno(),)
            started.append(
                subprocess.Popen(command, env=environment, pass_fds=keep, stdout=output, stderr=subprocess.STDOUT)
            )
        try:
            wait_for(f"http://127.0.0.1:{settings.port}/livez")
            time.sleep(2)  # all of them, not only the one that answered
            yield started
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(20)


def wait_for(address: str) -> None:
    """Returns when somebody answers."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def memory_mb(process: subprocess.Popen[bytes]) -> float:
    """The most memory that a process has had, in MB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    [peak] = [line for line in lines if line.startswith("VmHWM")]
    return int(peak.split()[1]) * 1024 / 1e6


# Each says how something that must never happen would look.
NEVER = {
    "more counted judgments than wanted votes": "SELECT count(*) FROM (SELECT c.id FROM comparison c JOIN slot s"
    " ON s.comparison_id = c.id AND s.state = 'filled' GROUP BY c.id HAVING count(*) > c.votes_wanted) x",
    "an annotator twice on a comparison": "SELECT count(*) FROM (SELECT 1 FROM judgment"
    " GROUP BY comparison_id, account_id HAVING count(*) > 1 UNION ALL SELECT 1 FROM slot"
    " WHERE holder_id IS NOT NULL GROUP BY comparison_id, holder_id HAVING count(*) > 1) x",
    "a key twice": "SELECT count(*) FROM (SELECT 1 FROM judgment_revision GROUP BY account_id, key"
    " HAVING count(*) > 1) x",
    "a filled slot without a judgment": "SELECT count(*) FROM slot s LEFT JOIN judgment j"
    " ON j.comparison_id = s.comparison_id AND j.account_id = s.holder_id WHERE s.state = 'filled' AND j.id IS NULL",
}


def broken(s: Session, ledger: list[str]) -> dict[str, int]:
    """How often each invariant is broken; `ledger` are the keys of the judgments that were acknowledged."""
    found = {what: int(s.execute(text(query)).scalar_one()) for what, query in NEVER.items()}
    s.execute(text("CREATE TEMP TABLE told AS SELECT key, count(*) AS n FROM judgment_revision GROUP BY key"))
    query = text(
        "SELECT count(*) FROM unnest(CAST(:keys AS uuid[])) AS k LEFT JOIN told ON told.key = k"
        " WHERE told.n IS DISTINCT FROM 1"
    )
    found["an acknowledged judgment not there exactly once"] = int(s.execute(query, {"keys": ledger}).scalar_one())
    return found


def quantiles(values: list[float]) -> dict[str, Any]:
    """Median, 95th and 99th percentile, by nearest rank."""
    ordered = sorted(values)
    return {
        f"p{q}": ordered[min(len(ordered) - 1, int(len(ordered) * q / 100))] if ordered else None for q in (50, 95, 99)
    }


def dumped(value: object) -> str:
    """JSON of a line."""
    return json.dumps(value, separators=(",", ":"))
