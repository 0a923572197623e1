import json

import pytest

from benchmarks import report

RESULT = {
    "name": "first_light",
    "commit": "abc",
    "measured": "2026-01-02T03:04:05Z",
    "machine": {"cores": 2, "cpu": "Testron", "memory_gib": 8.0, "load_average": [0.5, 0, 0]},
    "table": [["speed", "3 a|s", "at least 2"]],
    "note": "Once.",
}
TABLE = """| | measured | wanted |
|---|---|---|
| speed | 3 a\\|s | at least 2 |

Once. Commit `abc`, 2026-01-02, 2 cores of Testron, 8.0 GiB, load 0.5."""


def test_a_result_becomes_a_table():
    assert report.table(RESULT) == TABLE


def test_a_new_result_gets_a_section_and_an_old_one_is_replaced_in_place():
    first = report.with_table("# Benchmarks\n", RESULT)
    assert first == f"# Benchmarks\n\n## First light\n\n<!-- first_light -->\n\n{TABLE}\n\n<!-- /first_light -->\n"
    edited = first.replace("## First light", "## Mine") + "\nAfter.\n"
    again = report.with_table(edited, {**RESULT, "table": [["speed", "4", ""]]})
    assert "| speed | 4 |  |" in again
    assert "3 a" not in again
    assert "## Mine" in again
    assert again.endswith("\nAfter.\n")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "benchmarks.md")
    return tmp_path


def test_writing_leaves_json_and_document(elsewhere):
    path = report.write("speed", {"x": 1.5}, [("x", "1.5", "")])
    stored = json.loads(path.read_text())
    assert stored["figures"] == {"x": 1.5}
    assert stored["machine"]["cores"] >= 1
    assert stored["commit"]
    document = (elsewhere / "benchmarks.md").read_text()
    assert "| x | 1.5 |  |" in document
    (elsewhere / "benchmarks.md").unlink()
    report.main()
    assert (elsewhere / "benchmarks.md").read_text() == document
