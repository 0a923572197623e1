"""`make bench-judging`: people at their desks against a large store, the floor of the database, and a browser.

Five minutes as it stands. `ARGS="--comparisons 2000 --people 1 8 --seconds 3 --warm 1"` takes less.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

from app.settings import Settings
from app.store import embedded, migrate
from app.store.db import make_engine, session_factory
from benchmarks.judging import desk, floor, house
from benchmarks.report import Row, write

AT_LEAST_PER_S, AT_LEAST_OF_FLOOR, WEB_MB = 200, 0.40, 250


def run_people(port: int, people: int, seconds: float, warm: float, web_pids: list[int]) -> dict[str, Any]:
    """The load from its own process."""
    command = [sys.executable, "-m", "benchmarks.judging.people", str(port), str(people), str(seconds), str(warm)]
    command += map(str, web_pids)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the client failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(given: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Everything, in one store."""
    url = embedded.start(home)
    figures: dict[str, Any] = {"comparisons": given.comparisons, "web_processes": given.web, "load": [], "floor": {}}
    try:
        migrate.upgrade(url)
        engine = make_engine(url)
        sessions = session_factory(engine)
        began = time.monotonic()
        with sessions.begin() as s:
            project_id = house.furnish(s, given.comparisons, max(given.people)).id
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
            figures["synchronous_commit"] = connection.execute(text("SHOW synchronous_commit")).scalar_one()
        figures["store_s"] = round(time.monotonic() - began, 1)
        settings = Settings(home=home, database_url=url, port=house_port(), log_level="info")
        settings.make_home()
        settings.signing_key()
        seen = floor.statements(settings)
        figures["statements"] = [" ".join(s.split())[:160] for s, _ in seen]
        ledger: list[str] = []
        with house.web(settings, url, given.web, home / "web.log") as webs:
            for people in given.people:
                found = run_people(settings.port, people, given.seconds, given.warm, [process.pid for process in webs])
                ledger += found.pop("keys")
                found["ms"] = house.quantiles(found.pop("ms"))
                errors = found.pop("errors")
                found |= {"errors": len(errors), "first_error": errors[0] if errors else None}
                figures["load"].append(found)
                print(f"{people} people: {found['per_s']:.0f}/s, {found['ms']}, {len(errors)} errors", flush=True)
            if not given.no_browser:
                address = f"http://127.0.0.1:{settings.port}"
                figures["desk"] = desk.measure(address, f"load-{max(given.people)}", given.keys)
            figures["web_mb"] = [round(house.memory_mb(process), 1) for process in webs]
        path = home / "floor.sql"
        path.write_text(floor.script(seen, str(project_id)))
        with sessions.begin() as s:
            house.hold_two(s, project_id, max(given.people))
        for people in given.people:
            figures["floor"][str(people)] = floor.measure(url, path, people, given.floor_seconds)
            print(f"floor with {people} clients: {figures['floor'][str(people)]:.0f}/s", flush=True)
        with sessions.begin() as s:
            figures["broken"] = house.broken(s, ledger)
            free = s.execute(text("SELECT count(*) FROM slot WHERE state = 'free'")).scalar_one()
        figures |= {"acknowledged": len(ledger), "free_slots_left": free}
        engine.dispose()
    finally:
        embedded.stop(home)
    return figures


def house_port() -> int:
    """A port that nobody listens on."""

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows_of(figures: dict[str, Any]) -> list[Row]:
    """The table."""
    rows: list[Row] = []
    for found in figures["load"]:
        people, ms, floor_s = found["people"], found["ms"], figures["floor"][str(found["people"])]
        last = found is figures["load"][-1]
        wanted = f"at least {AT_LEAST_PER_S}/s and {AT_LEAST_OF_FLOOR:.0%} of pgbench" if last else ""
        share = found["per_s"] / floor_s
        rows.append(
            (
                f"{people} {'person' if people == 1 else 'people'} without think time, submit + next",
                f"{found['per_s']:.0f}/s, {share:.0%} of the {floor_s:,.0f}/s that pgbench does",
                wanted,
            )
        )
        if ms["p50"] is not None:
            rows.append((f"- p50, p95, p99 ({people})", f"{ms['p50']:.1f}, {ms['p95']:.1f}, {ms['p99']:.1f} ms", ""))
        cpu = f"{found['client_cpu']:.2f} and {found['web_cpu']:.2f} cores, {found['web_cpu_ms_each']:.1f} ms each"
        rows.append((f"- CPU of the client and of the web ({people})", cpu, "said"))
    errors = sum(found["errors"] for found in figures["load"])
    rows.append(("Errors; invariants broken", f"{errors}; {sum(figures['broken'].values())}", "0; 0"))
    rows.append(
        ("Memory of each web process", ", ".join(f"{mb:.0f} MB" for mb in figures["web_mb"]), f"under {WEB_MB} MB")
    )
    if "desk" in figures:
        seen = figures["desk"]
        keys = seen["key_to_text_ms"]
        rows.append(
            (
                "From a key to the next text, in Chromium",
                f"median {keys['median']:.0f} ms, p95 {keys['p95']:.0f} ms",
                "",
            )
        )
        rows.append(
            (
                "First load with an empty cache",
                f"{seen['first_load_bytes'] / 1000:.0f} kB, judgeable after {seen['first_comparison_ms']:.0f} ms",
                "",
            )
        )
    rows.append(("Statements of one submit + next", f"{len(figures['statements'])}, beside BEGIN and COMMIT", ""))
    return rows


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=100_000)
    parser.add_argument("--people", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--warm", type=float, default=4)
    parser.add_argument("--floor-seconds", type=int, default=8)
    parser.add_argument("--web", type=int, default=2, help="web processes")
    parser.add_argument("--keys", type=int, default=60, help="judgments in the browser")
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)  # everything that we start shares them
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="pairwright-bench-", ignore_cleanup_errors=True) as scratch:
        figures = measure(given, Path(scratch) / "home")
    if given.dry:
        print(json.dumps(figures, indent=1))
        for row in rows_of(figures):
            print(" | ".join(row))
        return
    note = (
        f"{given.comparisons:,} stored comparisons; {given.web} web processes, Postgres (synchronous_commit"
        f" {figures['synchronous_commit']}) and the client share {len(cores)} cores; {given.seconds:g} s each after"
        f" {given.warm:g} s of warming up; signed in, cross-site defence on, HTML rendered."
    )
    write("judging", figures, rows_of(figures), note)


if __name__ == "__main__":
    main()
