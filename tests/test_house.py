"""The rules of the house that no single room can keep alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
OURS = ["app", "tests", "migrations", "benchmarks"]


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_floors_hold():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["app.web.main", "app.cli.main", "app.jobs.supervisor", "app.jobs.worker"])
def test_what_must_start_fast_leaves_torch_alone(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_too_long_to_read():
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked()
        if path.suffix in (".py", ".js", ".css", ".html") and "vendor" not in path.parts
    }
    assert {path: n for path, n in lengths.items() if n > 500} == {}
    loops = {path: n for path, n in lengths.items() if path.parent == Path("app/training")}
    assert {path: n for path, n in loops.items() if n > 300} == {}


def test_nothing_executes_pickles_or_a_models_code():
    forbidden = re.compile(r"import pickle|torch\.load\(|trust_remote_code=True|allow_pickle=True|hx-on|unsafe-eval'")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        if path.suffix in (".py", ".html") and path.parts[len(ROOT.parts)] in ("app", "templates", "benchmarks")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if forbidden.search(line)
    ]
    assert found == []


def test_locks_name_packages_and_no_place_to_get_them():
    for lock in (ROOT / ".ci" / "locks").glob("*.lock"):
        text = lock.read_text(encoding="utf-8")
        assert "==" in text
        assert re.search(r"https?:|file:|--index|--find-links|--extra", text) is None, lock.name


def test_links_between_documents_lead_somewhere():
    missing = [
        f"{path.relative_to(ROOT)}: {link}"
        for path in tracked()
        if path.suffix == ".md"
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        if not (path.parent / link).exists()
    ]
    assert missing == []


def test_decisions_have_a_title_and_say_why():
    for path in (ROOT / "docs" / "decisions").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# "), path.name
        assert len(text.split()) > 30, path.name


def test_the_containers_start_what_exists_as_nobody_special_and_without_default_secrets():
    from typer.testing import CliRunner

    from app.cli.main import cli

    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert {"secrets", "postgres", "web", "worker"} <= set(services)
    for name, service in services.items():
        assert service.get("user") not in (None, "root", "0", "0:0"), f"{name} runs as root"
        assert not any("PASSWORD" in key and "FILE" not in key for key in service.get("environment", {})), name
        if name != "secrets":
            assert "healthcheck" in service, name
    for name in ("web", "worker"):
        program, *arguments = services[name]["command"]
        assert program == "pairwright"
        done = CliRunner().invoke(cli, [arguments[0], "--help"])
        assert done.exit_code == 0, f"{name}: there is no command {arguments[0]}"
        assert services[name]["depends_on"]["postgres"]["condition"] == "service_healthy"
    dockerfile = services["web"]["build"]["dockerfile_inline"]
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split()), copied
