"""The embedded Postgres under everything that happens to processes: company, crashes, bad places.

Each test that disturbs the server has one of its own. Processes are really killed, and what comes of it is looked for
until it is there or a time limit has passed.
"""

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Barrier
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from app.db.embedded import embedded_postgres
from app.errors import EmbeddedPostgresError

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
DAC_OVERRIDE = 1 << 1

USER_OF_THE_SERVER = """
import sys
from pathlib import Path
from app.db.embedded import embedded_postgres
with embedded_postgres(Path(sys.argv[1])) as dsn:
    print(dsn, flush=True)
    sys.stdin.read()
"""


@contextmanager
def temporary_data_dir(factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory with a short path; a server that a failed test leaves behind is ended."""
    directory = factory.mktemp("data")
    yield directory
    for file in directory.rglob("postmaster.pid"):
        with suppress(ProcessLookupError):
            os.kill(postmaster_pid(file.parents[2]), signal.SIGQUIT)
    shutil.rmtree(directory)


@pytest.fixture
def empty_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with temporary_data_dir(tmp_path_factory) as directory:
        yield directory


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster whose server has been stopped, to be copied: that takes a third of the time of making one."""
    with temporary_data_dir(tmp_path_factory) as directory:
        with embedded_postgres(directory):
            pass
        yield directory / "postgres" / "cluster"


@pytest.fixture
def data_dir(empty_data_dir: Path, cluster: Path) -> Path:
    """A data directory that has been used before."""
    (empty_data_dir / "postgres").mkdir(mode=0o711)
    subprocess.run(["/bin/cp", "-a", cluster, empty_data_dir / "postgres"], check=True)
    return empty_data_dir


class Running(NamedTuple):
    """A server that is only looked at."""

    data_dir: Path
    dsn: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all tests that leave it as it is, in an environment that must neither bend nor reach it."""
    with temporary_data_dir(tmp_path_factory) as directory, pytest.MonkeyPatch.context() as environment:
        environment.setenv("PGPORT", "1")
        environment.setenv("PGDATA", "/nowhere")
        environment.setenv("JASPER_API_TOKEN", "hush")
        with embedded_postgres(directory, database="my test", settings={"work_mem": "5MB"}) as dsn:
            yield Running(directory, dsn)


def query(dsn: str, *statements: str) -> object:
    """Run statements on a connection of their own; returns the first value of the last."""

    async def run() -> object:
        connection = await asyncpg.connect(dsn, timeout=5)
        try:
            return [await connection.fetchval(statement) for statement in statements][-1]
        finally:
            await connection.close()

    return asyncio.run(run())


def eventually(holds: Callable[[], object]) -> None:
    """Look until `holds` is true."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


def answers(dsn: str) -> bool:
    try:
        return query(dsn, "SELECT 1") == 1
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False


def postmaster_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "cluster" / "postmaster.pid").read_text().split("\n", 1)[0])


def socket_directory(dsn: str) -> Path:
    return Path(parse_qs(urlsplit(dsn).query)["host"][0])


@contextmanager
def another_process(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that uses the server until its input ends, and is killed at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", USER_OF_THE_SERVER, str(data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def dsn_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_serves_a_database_as_durable_as_production(running: Running) -> None:
    """What is tried here must hold in production; the caller's PG* variables must not bend it."""
    assert query(running.dsn, "SELECT current_database()") == "my test"
    assert str(query(running.dsn, "SHOW server_version")).startswith("16.")
    for name, value in {
        "data_checksums": "on",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "server_encoding": "UTF8",
        "listen_addresses": "",
        "work_mem": "5MB",
    }.items():
        assert query(running.dsn, f"SHOW {name}") == value, name


def test_interrupt_from_the_terminal_does_not_reach_it(running: Running) -> None:
    """Ctrl-C goes to a whole process group, and the application still has work to commit."""
    assert os.getpgid(postmaster_pid(running.data_dir)) != os.getpgid(0)


def test_server_sees_nothing_of_our_environment(running: Running) -> None:
    """Our settings and their secrets stand there, and under root the server's user is one that others share."""
    seen = query(
        running.dsn,
        "CREATE TEMPORARY TABLE seen (line text)",
        "COPY seen FROM PROGRAM 'env'",
        "SELECT string_agg(line, ' ') FROM seen",
    )
    assert "TZ=UTC" in str(seen)
    assert "hush" not in str(seen)


def test_log_never_holds_values(running: Running) -> None:
    """Values are callbacks and may hold secrets, so a failed statement is logged without them."""
    with pytest.raises(asyncpg.UniqueViolationError):
        query(running.dsn, "CREATE TEMPORARY TABLE t (x text PRIMARY KEY)", "INSERT INTO t VALUES ('hush'), ('hush')")
    log = (running.data_dir / "postgres" / "postgres.log").read_text()
    assert "duplicate key" in log
    assert "hush" not in log


def test_last_user_stops_it_and_next_finds_its_data(data_dir: Path) -> None:
    """The server lives as long as it is used, and not longer."""
    with embedded_postgres(data_dir) as dsn:
        query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = postmaster_pid(data_dir)
    assert not answers(dsn)
    with pytest.raises(ProcessLookupError):  # nor is it left as a zombie
        os.kill(pid, 0)
    with embedded_postgres(data_dir) as again:
        assert again == dsn
        assert query(dsn, "SELECT answer FROM kept") == 42


def test_second_process_joins_and_leaves_without_stopping_it(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`status` beside a running `serve` uses its server; whichever leaves last stops it."""
    caplog.set_level(logging.INFO)
    with another_process(data_dir) as starter:
        dsn = dsn_of(starter)
        pid = postmaster_pid(data_dir)
        with embedded_postgres(data_dir) as joined:
            assert joined == dsn
        assert "joined" in caplog.text
        assert answers(dsn)
        with embedded_postgres(data_dir):
            starter.communicate("")  # the one that started it leaves first
            assert starter.returncode == 0
            assert answers(dsn)
            assert postmaster_pid(data_dir) == pid
    assert not answers(dsn)


def test_users_that_come_at_once_share_one_server(empty_data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only one of several starts it, and each is told the same address."""
    all_there = Barrier(3, timeout=PATIENCE)

    def use() -> tuple[str, int]:
        all_there.wait()
        with embedded_postgres(empty_data_dir) as dsn:
            all_there.wait()
            assert answers(dsn)
            return dsn, postmaster_pid(empty_data_dir)

    caplog.set_level(logging.INFO)
    with ThreadPoolExecutor(3) as pool:
        users = [pool.submit(use) for _ in range(3)]
        assert len({user.result() for user in users}) == 1
    assert [record.getMessage().split()[-1] for record in caplog.records] == ["started", "joined", "joined", "stopped"]


def test_orphan_of_a_killed_process_is_taken_over(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A SIGKILL of the application loses nothing and leaves nothing in the way."""
    caplog.set_level(logging.INFO)
    with another_process(data_dir) as killed:
        dsn = dsn_of(killed)
        query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = postmaster_pid(data_dir)
    with embedded_postgres(data_dir) as again:
        assert again == dsn
        assert postmaster_pid(data_dir) == pid
        assert query(dsn, "SELECT answer FROM kept") == 42
    assert "taken over" in caplog.text
    assert not answers(dsn)


def test_killed_server_is_restarted_once_for_all_its_users(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A SIGKILL of Postgres costs its users their connections, but neither data nor the address."""
    with embedded_postgres(data_dir) as dsn, embedded_postgres(data_dir):
        query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        for times in (1, 2):
            pid = postmaster_pid(data_dir)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: caplog.text.count("was restarted") == times)  # noqa: B023 (looked at before it changes)
            assert postmaster_pid(data_dir) != pid
            assert query(dsn, "SELECT answer FROM kept") == 42
    assert not answers(dsn)


def test_killed_server_with_a_busy_connection_is_restarted(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A backend that outlives the server for a while is waited for; it still has the shared memory."""
    busy = "DO $$ BEGIN WHILE clock_timestamp() < now() + interval '1.5 s' LOOP END LOOP; END $$"
    with embedded_postgres(data_dir) as dsn, ThreadPoolExecutor(1) as pool:
        at_work = pool.submit(query, dsn, busy)
        eventually(lambda: query(dsn, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %'") == 1)
        os.kill(postmaster_pid(data_dir), signal.SIGKILL)
        eventually(lambda: "was restarted" in caplog.text)
        assert answers(dsn)
        at_work.exception(PATIENCE)
    assert "cannot be started" not in caplog.text


def test_process_id_of_a_stranger_is_not_taken_for_a_server(data_dir: Path) -> None:
    """After a crash the id in `postmaster.pid` may be another process's; Postgres alone would refuse to start."""
    cluster = data_dir / "postgres" / "cluster"
    owner = cluster.stat().st_uid
    with subprocess.Popen(["/bin/sleep", "60"], user=owner if os.geteuid() == 0 else None) as stranger:
        (cluster / "postmaster.pid").write_text(f"{stranger.pid}\n{cluster}\n{int(time.time())}\n5432\n")
        with embedded_postgres(data_dir) as dsn:
            assert answers(dsn)
        assert stranger.poll() is None
        stranger.kill()


def test_process_killed_during_initdb_does_not_spoil_the_next_start(empty_data_dir: Path) -> None:
    """Its initdb lives on for a while; the next start must not meddle with it."""
    unfinished = empty_data_dir / "postgres" / "cluster.unfinished"
    with another_process(empty_data_dir) as killed:
        eventually((unfinished / "PG_VERSION").exists)
        killed.kill()
    assert not (empty_data_dir / "postgres" / "cluster").exists()
    with embedded_postgres(empty_data_dir) as dsn:
        assert answers(dsn)
    assert not unfinished.exists()


def test_half_made_cluster_is_made_anew(empty_data_dir: Path) -> None:
    """What an initdb that was killed leaves behind is never taken for a cluster."""
    unfinished = empty_data_dir / "postgres" / "cluster.unfinished"
    (unfinished / "base").mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("16\n")
    with embedded_postgres(empty_data_dir) as dsn:
        assert answers(dsn)
    assert not unfinished.exists()


@pytest.mark.parametrize("name", ["long" * 30, "a, b"])
def test_socket_finds_another_place_where_the_path_is_unfit(data_dir: Path, name: str) -> None:
    """A socket's path has at most about a hundred bytes, and drivers read a comma in it as two hosts."""
    unfit = data_dir / name
    unfit.mkdir()
    (data_dir / "postgres").rename(unfit / "postgres")
    with another_process(unfit) as killed:
        dsn = dsn_of(killed)
        elsewhere = socket_directory(dsn)
        assert not elsewhere.is_relative_to(data_dir)
        assert elsewhere.stat().st_mode & 0o777 == 0o700
    with embedded_postgres(unfit) as again:
        assert again == dsn
        assert answers(dsn)
    assert not elsewhere.exists()


def test_remembered_socket_directory_of_somebody_else_is_not_used(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in a shared directory may have been taken over since; then another is made, and with a short name."""
    unfit = data_dir / ("long" * 30)
    unfit.mkdir()
    (data_dir / "postgres").rename(unfit / "postgres")
    monkeypatch.setattr(tempfile, "tempdir", str(unfit))
    (data_dir / "a file").touch()
    (unfit / "postgres" / "run.elsewhere").symlink_to(data_dir / "a file")
    with embedded_postgres(unfit) as dsn:
        assert answers(dsn)


def test_failed_start_says_what_the_log_says(data_dir: Path) -> None:
    """The reason stands in the server's log, where nobody would look first."""
    with (
        pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "shared_buffers"'),
        embedded_postgres(data_dir, settings={"shared_buffers": "plenty"}),
    ):
        pytest.fail("it started")
    with embedded_postgres(data_dir) as dsn:
        assert answers(dsn)


def test_missing_wheel_is_said_in_words(empty_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded Postgres is optional; without it the way out is a setting or an installation."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with (
        pytest.raises(EmbeddedPostgresError, match=r"DATABASE_URL.*pip install 'jasper-receiver\[embedded\]'"),
        embedded_postgres(empty_data_dir),
    ):
        pytest.fail("it started")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
@pytest.mark.parametrize(("mode", "kept"), [(0o755, 0), (0o700, DAC_OVERRIDE)])
def test_root_keeps_a_privilege_only_where_files_could_not_be_reached(mode: int, kept: int) -> None:
    """The server runs as nobody; below a directory that is closed to others it needs one capability, elsewhere none."""
    parent = Path(tempfile.mkdtemp())
    try:
        parent.chmod(mode)
        with embedded_postgres(parent / "data"):
            lines = Path(f"/proc/{postmaster_pid(parent / 'data')}/status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines)
        assert "0" not in status["Uid"].split()
        assert int(status["CapEff"], 16) == kept
    finally:
        shutil.rmtree(parent)
