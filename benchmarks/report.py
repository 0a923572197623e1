"""What every benchmark writes: figures as JSON, with the machine and the commit, and a table in docs/benchmarks.md.

`python -m benchmarks.report` writes all tables again from the JSON files that are there.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
HEADING = "# Benchmarks\n\nMeasured by `make bench-NAME`; each table names its machine and commit.\n"

Row = tuple[str, str, str]  # what, measured, wanted


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was when they were written."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "system": platform.system(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def commit() -> str:
    """The commit that was measured; `+` marks changes that are not in it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if _git("status", "--porcelain", "--", "app") else "") if head else "unknown"


def write(name: str, figures: Mapping[str, Any], rows: Sequence[Row], note: str = "") -> Path:
    """Write results/NAME.json and the table between NAME's markers in docs/benchmarks.md; the JSON's path.

    `rows` are (what, measured, wanted); `note` is a sentence on how it was measured.
    """
    result = {
        "name": name,
        "commit": commit(),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "figures": dict(figures),
        "table": [list(row) for row in rows],
        "note": note,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    document = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else HEADING
    DOCUMENT.write_text(with_table(document, result), encoding="utf-8")
    print(table(result))
    return path


def table(result: Mapping[str, Any]) -> str:
    """One result as Markdown."""
    on = result["machine"]
    head = ["| | measured | wanted |", "|---|---|---|"]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in result["table"]]
    where = f"{on['cores']} cores of {on['cpu']}, {on['memory_gib']} GiB, load {on['load_average'][0]}"
    foot = f"{result['note']} Commit `{result['commit']}`, {result['measured'][:10]}, {where}.".strip()
    return "\n".join([*head, *body, "", foot])


def with_table(document: str, result: Mapping[str, Any]) -> str:
    """The document with this result's table between its markers; a section of its own is added where there is none."""
    name = result["name"]
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    block = f"{start}\n\n{table(result)}\n\n{end}"
    if start in document and end in document:
        before, _, rest = document.partition(start)
        return before + block + rest.partition(end)[2]
    return f"{document.rstrip()}\n\n## {name.replace('_', ' ').capitalize()}\n\n{block}\n"


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> None:
    """Write every table again."""
    document = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else HEADING
    for path in sorted(RESULTS.glob("*.json")):
        document = with_table(document, json.loads(path.read_text(encoding="utf-8")))
    DOCUMENT.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
