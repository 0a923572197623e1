"""What cannot work says so in one line with what mends it, exit code 1, and no traceback."""

import socket
import subprocess

import psycopg
import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from app.cli.main import cli
from app.core.errors import NotFound
from app.settings import get_settings
from tests.installation import Installation


@pytest.fixture
def here(monkeypatch, tmp_path, database_url):
    """Commands run in this process, on an empty database of the test's own."""
    monkeypatch.setenv("PAIRWRIGHT_DATABASE_URL", database_url)
    monkeypatch.setenv("PAIRWRIGHT_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def line_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_taken_port_is_one_clear_line(installation: Installation):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", installation.port))
        taken.listen()
        said = line_of(installation.command("serve"))
    assert f"Port {installation.port} of 127.0.0.1 is taken" in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://u:canary@127.0.0.1:9/d", "127.0.0.1:9 does not answer"),
        ("postgresql://u:canary@no-such-host.invalid/d", "host no-such-host.invalid is not known"),
        ("mysql://u:canary@h/d", "must be a Postgres address"),
    ],
)
def test_a_database_that_is_not_there_is_one_clear_line_without_the_password(installation, url, told):
    installation.environment["PAIRWRIGHT_DATABASE_URL"] = url
    said = line_of(installation.command("serve"))
    assert told in said
    assert "canary" not in said


def test_a_wrong_password_is_one_clear_line(installation, server_url):
    url = make_url(server_url).set(password="canary").render_as_string(hide_password=False)
    installation.environment["PAIRWRIGHT_DATABASE_URL"] = url
    said = line_of(installation.command("serve"))
    assert "refuses the user pairwright or its password" in said
    assert "canary" not in said


def test_a_newer_schema_is_one_clear_line_and_nothing_changes(installation, database_url):
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        installation.environment["PAIRWRIGHT_DATABASE_URL"] = database_url
        assert "newer version of Pairwright" in line_of(installation.command("serve"))
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


def test_a_weak_secret_refuses_to_serve(installation):
    installation.environment["PAIRWRIGHT_SECRET_KEY"] = "secret"
    assert "PAIRWRIGHT_SECRET_KEY is weak" in line_of(installation.command("serve")).replace(": is", " is")


@pytest.mark.parametrize("command", [["runs"], ["invite", "annotator"], ["train", "reward"], ["rollback"]])
def test_commands_before_the_first_start_say_what_to_do_first(here, command):
    refused = CliRunner().invoke(cli, command).exception
    assert isinstance(refused, NotFound)
    assert (refused.message, refused.mend) == (
        "There is no project yet.",
        "The first `pairwright serve` makes one.",
    )


def test_a_file_that_is_not_there_is_refused_by_name(here):
    refused = CliRunner().invoke(cli, ["import", "prompts", "nowhere.jsonl"]).exception
    assert isinstance(refused, NotFound)
    assert "There is no file nowhere.jsonl" in refused.message


def test_a_role_that_does_not_exist_is_refused_with_those_that_do(here):
    done = CliRunner().invoke(cli, ["invite", "emperor"])
    assert done.exit_code == 2
    assert "annotator" in done.output
