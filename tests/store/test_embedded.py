"""The embedded Postgres: started once, found again, recovered, stopped by the last who leaves."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from app.core.errors import Unavailable
from app.store import embedded

# A process that starts (or attaches to) the server, says so, and waits to be told to stop.
USER = """
import sys
from pathlib import Path
from app.store import embedded
home = Path(sys.argv[1])
print(embedded.start(home, durable=False), flush=True)
sys.stdin.readline()
print(embedded.stop(home), flush=True)
"""


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    yield home
    embedded.stop(home)


def ask(url, query="SELECT 1"):
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        return connection.execute(query).fetchone()[0]


def postmaster(home):
    return int((data_of(home) / "postmaster.pid").read_text().splitlines()[0])


def data_of(home):
    return embedded._place(home / "postgres").data


def gone(pid):
    deadline = time.monotonic() + 20
    while embedded._command_of(pid):
        embedded._reap(pid)
        assert time.monotonic() < deadline, "the process is still there"
        time.sleep(0.02)
    return True


def user(home):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", USER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def leave(process):
    out, _ = process.communicate("\n", timeout=60)
    return out.strip().splitlines()[-1] == "True"


def test_it_starts_answers_and_stops(home):
    url = embedded.start(home)
    assert ask(url, "SHOW server_encoding") == "UTF8"
    assert ask(url, "SHOW listen_addresses") == ""
    assert ask(url, "SHOW synchronous_commit") == "on"
    assert ask(url, "SHOW fsync") == "on"
    assert ask(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
    pid = postmaster(home)
    assert embedded.stop(home)
    assert gone(pid)
    with pytest.raises(Unavailable, match="does not run"):
        embedded.attach(home)


def test_everything_it_keeps_is_for_us_alone(home):
    embedded.start(home, durable=False)
    root = home / "postgres"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE(data_of(home).stat().st_mode) == 0o700
    password = (root / "password").read_text()
    assert len(password) >= 40
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        ask(embedded.start(home).replace(password, "wrong"))
    # What anybody can read of the process says nothing of the password.
    assert password not in embedded._command_of(postmaster(home))


def test_two_installations_have_two_passwords(tmp_path, home):
    for one in (home, tmp_path / "other"):
        embedded.start(one, durable=False)
    embedded.stop(tmp_path / "other")
    assert (home / "postgres/password").read_text() != (tmp_path / "other/postgres/password").read_text()


def test_starting_loosens_no_permission_and_owns_nothing_away(tmp_path):
    parent = tmp_path / "closed"
    parent.mkdir(mode=0o700)
    before = [path.stat() for path in (tmp_path, parent)]
    home = parent / "home"
    embedded.start(home, durable=False)
    try:
        after = [path.stat() for path in (tmp_path, parent)]
        for old, new in zip(before, after, strict=True):
            assert (old.st_mode, old.st_uid, old.st_gid) == (new.st_mode, new.st_uid, new.st_gid)
        owners = {path.lstat().st_uid for path in [home, *home.rglob("*")]}
        assert owners == {os.geteuid()}
        for path in home.rglob("*"):
            if not path.is_symlink():
                assert not path.stat().st_mode & 0o077 or path.is_file(), path
    finally:
        embedded.stop(home)


def test_data_survives_kill_9_of_the_server(home):
    url = embedded.start(home)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('still here')")
    pid = postmaster(home)
    os.kill(pid, signal.SIGKILL)
    url = embedded.start(home)
    assert postmaster(home) != pid
    assert ask(url, "SELECT word FROM kept") == "still here"


def test_a_pid_file_that_names_another_living_process_is_no_obstacle(home):
    embedded.start(home, durable=False)
    pid = postmaster(home)
    pid_file = data_of(home) / "postmaster.pid"
    stale = pid_file.read_text()
    embedded.stop(home)
    assert gone(pid)
    pid_file.write_text(stale.replace(str(pid), str(os.getpid()), 1))
    assert ask(embedded.start(home, durable=False)) == 1


def test_a_second_process_attaches_and_the_last_to_leave_stops_it(home):
    first = user(home)
    url = first.stdout.readline().strip()
    pid = postmaster(home)
    second = user(home)
    assert second.stdout.readline().strip() == url
    assert postmaster(home) == pid
    assert not leave(first)
    assert ask(url) == 1
    assert leave(second)
    assert gone(pid)


def test_a_killed_user_leaves_the_server_to_the_next(home):
    first = user(home)
    url = first.stdout.readline().strip()
    pid = postmaster(home)
    first.kill()
    first.communicate()
    assert embedded.attach(home) == url
    assert postmaster(home) == pid
    assert embedded.stop(home)
    assert gone(pid)


def test_of_two_that_start_at_once_one_starts_and_both_use_it(home):
    both = [user(home) for _ in range(3)]
    urls = {process.stdout.readline().strip() for process in both}
    assert len(urls) == 1
    assert ask(urls.pop()) == 1
    assert [leave(process) for process in both].count(True) == 1


def test_a_start_that_was_killed_while_making_the_cluster_is_begun_again(home):
    part = home / "postgres" / "data.part"
    part.mkdir(parents=True, mode=0o700)
    (part / "half").touch()
    assert ask(embedded.start(home, durable=False)) == 1
    assert not part.exists()


def test_a_long_path_gets_a_short_private_socket_folder_that_is_remembered(tmp_path):
    home = tmp_path / ("long" * 30) / "home"
    url = embedded.start(home, durable=False)
    try:
        folder = Path((home / "postgres" / "socket").read_text())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(str(folder)) < 90
        assert embedded.start(home, durable=False) == url
        assert ask(url) == 1
    finally:
        embedded.stop(home)
        folder.rmdir()


def test_a_server_that_cannot_start_says_what_postgres_said(home):
    embedded.start(home, durable=False)
    pid = postmaster(home)
    embedded.stop(home)
    assert gone(pid)
    (data_of(home) / "global" / "pg_control").unlink()
    with pytest.raises(Unavailable) as refusal:
        embedded.start(home, durable=False)
    assert "pg_control" in refusal.value.mend


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_where_user_namespaces_are_closed_nobody_serves_from_its_own_copy(home, monkeypatch):
    monkeypatch.setattr(embedded, "_namespaces_open", lambda: False)
    base = None
    try:
        url = embedded.start(home, durable=False)
        base = Path((home / "postgres" / "elsewhere").read_text())
        assert ask(url) == 1
        pid = postmaster(home)
        assert Path(f"/proc/{pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
        assert [stat.S_IMODE(folder.stat().st_mode) for folder in (base, home)] == [0o700, 0o700]
        assert not (base / "password").exists()
        os.kill(pid, signal.SIGKILL)
        assert ask(embedded.start(home, durable=False)) == 1
    finally:
        embedded.stop(home)
        if base is not None:
            shutil.rmtree(base)
            (home / "postgres" / "elsewhere").unlink()
