"""Several processes on one socket, for more than one core: started, watched, replaced when one dies, ended together.

They share nothing but the socket and Postgres, exactly like replicas; the kernel gives each connection to one of them.
"""

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import connection
from multiprocessing.context import SpawnProcess

from app import metrics
from app.errors import ReceiverError

_log = logging.getLogger(__name__)

_spawn = multiprocessing.get_context("spawn")

PAUSE = 1.0
"""Seconds before a process that died is replaced, so that one which cannot even start does not take a core for that."""

PATIENCE = 30.0
"""Seconds that the processes have to end in order, more than requests have (`app.serving`); then they are killed."""

MOST_FAILURES = 3
"""How often in a row every process may end without having served, until the whole is given up."""

_NEVER_SERVED = 1
"""The exit code of a process that never came to serve, which is also Python's for an error that nobody caught."""

Work = Callable[[socket.socket], bool]
"""What each process does: serves the socket until it is told to stop, and tells whether it ever got to serve. Sent to the
processes, so it is a function of a module, or a `functools.partial` of one."""


class WorkersError(ReceiverError):
    """Several processes cannot be started."""


def run(work: Work, listener: socket.socket, count: int) -> bool:
    """Do `work` in `count` processes until SIGINT or SIGTERM; returns whether all of them ended in order.

    Gives up, and returns False, where none of them comes to serve: whoever waits at the socket would wait for ever.
    What they count for Prometheus they share in a directory that is made for it, unless PROMETHEUS_MULTIPROC_DIR names one.
    Raises WorkersError where none can be made.
    """
    with ExitStack() as held:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            try:
                directory = held.enter_context(tempfile.TemporaryDirectory(prefix="jasper-receiver-"))
            except OSError as exc:
                raise WorkersError(
                    f"several workers need a directory for what they count, and none can be made ({exc.strerror}): give them "
                    "a /tmp that they may write to, or name one by TMPDIR"
                ) from exc
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
            held.callback(os.environ.pop, "PROMETHEUS_MULTIPROC_DIR")
        told = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda *_: told.set())
            held.callback(signal.signal, number, before)
        workers = [_start(work, listener) for _ in range(count)]
        failures = [0] * count
        while not told.is_set():
            connection.wait([worker.sentinel for worker in workers], timeout=0.2)
            for place, worker in enumerate(workers):
                if not worker.is_alive() and not told.is_set():
                    metrics.forget_process(worker.pid)
                    failures[place] = failures[place] + 1 if worker.exitcode == _NEVER_SERVED else 0
                    if min(failures) >= MOST_FAILURES:
                        _log.error("no worker comes to serve, giving up", extra={"tries": MOST_FAILURES})
                        _end(workers)
                        return False
                    _log.error("a worker died, another one takes its place", extra={"exit_code": worker.exitcode})
                    told.wait(PAUSE)
                    workers[place] = _start(work, listener)
        return _end(workers)


def _start(work: Work, listener: socket.socket) -> SpawnProcess:
    worker = _spawn.Process(target=_serve, args=(work, listener))
    worker.start()
    return worker


def _end(workers: list[SpawnProcess]) -> bool:
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + PATIENCE
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.is_alive():
            _log.error("a worker did not end in time and was killed")
            worker.kill()
            worker.join()
    # One that was only just starting knows of no orderly end yet.
    return all(worker.exitcode in {0, -signal.SIGTERM} for worker in workers)


def _serve(work: Work, listener: socket.socket) -> None:
    """The life of one worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - it was spawned
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True, name="parent").start()
    with listener:
        raise SystemExit(0 if work(listener) else _NEVER_SERVED)


def _follow(sentinel: int) -> None:
    """End in order when the parent is gone, however it went."""
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
