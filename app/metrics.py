"""What the process counts of itself, for Prometheus: every counter, histogram and gauge that does not need the database.

What is read from the database when somebody asks stands in `app.scrape`. Whoever counts on the road of a callback binds a
metric's labels once, at import: an `inc` then costs a third of a microsecond and an `observe` two thirds (three times that
where several processes share `PROMETHEUS_MULTIPROC_DIR`), while `labels(…)` alone costs a whole one. Labels are words that
this program chose, never what came from outside.

Several processes behind one address share a directory that `PROMETHEUS_MULTIPROC_DIR` names, set before this module is
imported; then each of them answers for all (`docs/metrics.md`).
"""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

PREFIX = "jasper_receiver"
"""What the names of all our metrics begin with."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # of the library; one more series for each would say nothing new

_own = CollectorRegistry()

CALLBACKS = Counter(
    f"{PREFIX}_callbacks",
    "Callbacks answered, by collection and by what came of them: a delivery's status or the problem's name",
    ["collection", "outcome"],
    registry=_own,
)
CALLBACK_SECONDS = Histogram(
    f"{PREFIX}_callback_seconds",
    "Seconds from a callback's head, or from its body where that follows at once, to its commit",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    registry=_own,
)
REJECTIONS = Counter(
    f"{PREFIX}_rejections",
    "Callbacks that did not prove that Jasper sent them: a required header or the signing secret was missing",
    ["reason"],
    registry=_own,
)
COMMIT_SECONDS = Histogram(
    f"{PREFIX}_commit_seconds",
    "Seconds that one transaction of the ledger took, its commit included",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    registry=_own,
)
BATCH_ENTRIES = Histogram(
    f"{PREFIX}_batch_entries",
    "Entries that one transaction of the ledger wrote",
    buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500, 1000),
    registry=_own,
)
COMMIT_FAILURES = Counter(
    f"{PREFIX}_commit_failures",
    "Transactions of the ledger that were not committed, or of which that is not known",
    registry=_own,
)
KEY_FAILURES = Counter(
    f"{PREFIX}_key_failures",
    "Requests refused for their API key: it is missing, wrong or revoked, or lacks the scope",
    ["reason"],
    registry=_own,
)
REQUESTS = Counter(
    f"{PREFIX}_requests",
    "Requests answered, callbacks not among them, by class of status; hung_up: there was nobody left to answer",
    ["status"],
    registry=_own,
)
QUEUED = Gauge(
    f"{PREFIX}_queued_callbacks",
    "Callbacks that wait for a transaction to take them",
    multiprocess_mode="livesum",
    registry=_own,
)
HELD_BYTES = Gauge(
    f"{PREFIX}_held_body_bytes",
    "Bytes of all bodies between their first byte and their commit",
    multiprocess_mode="livesum",
    registry=_own,
)
POOL = Gauge(
    f"{PREFIX}_pool_connections",
    "Connections to Postgres for everything but the ledger: in use, and idle",
    ["state"],
    multiprocess_mode="livesum",
    registry=_own,
)
PROCESSES = Gauge(
    f"{PREFIX}_processes",
    "Processes that these numbers are of",
    multiprocess_mode="livesum",
    registry=_own,
)

# A series that is there from the start lets its first step be seen.
for _status in ("2xx", "3xx", "4xx", "5xx", "hung_up"):
    REQUESTS.labels(_status)


def registry() -> CollectorRegistry:
    """What the process counts, or what all processes that share its directory count, ready to be asked."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    found = CollectorRegistry()
    if directory is None:
        found.register(_own)
        ProcessCollector(registry=found)
    else:
        MultiProcessCollector(found, path=directory)  # type: ignore[no-untyped-call]  # of the library
        found.register(_Processes(Path(directory)))
    return found


def forget_process(pid: int | None = None) -> None:
    """Take a process, this one unless told otherwise, out of the gauges that those which share its directory tell.

    What it counted stays.
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        mark_process_dead(pid or os.getpid())  # type: ignore[no-untyped-call]  # of the library


class _Processes(Collector):
    """What the system knows of each process that shares the directory and still runs, by its `pid`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for file in self._directory.glob("gauge_livesum_*.db"):
            pid = file.stem.rpartition("_")[2]
            for one in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                for sample in one.samples:
                    family.add_sample(sample.name, {"pid": pid}, sample.value)
        return families.values()
