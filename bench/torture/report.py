"""What a run has to say in the end: figures for people and for machines."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_LONGEST = 600
"""Characters of a violation that people are shown; JSON has all of it."""


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of one run. Times are in seconds; mappings count by kind."""

    seed: int
    receivers: int
    seconds: float
    faults: Mapping[str, int]
    faults_at_once: int
    failed_starts: int
    errors_logged: int
    changes: int
    attempts: int
    answers: Mapping[str, int]
    deliveries: Mapping[str, int]
    unheard: int
    events: int
    stale: int
    events_per_second: float
    answered_within: Mapping[str, float]
    downtime: float
    longest_gap: float
    violations: Mapping[str, int]
    details: Mapping[str, list[str]]

    @property
    def passed(self) -> bool:
        """Whether nothing was broken."""
        return not self.violations

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield f"seed {self.seed}, {self.receivers} receivers, {self.seconds:.0f} s"
        yield f"faults        {sum(self.faults.values())}: {_counted(self.faults)}"
        yield f"              {self.faults_at_once} struck while another was under way"
        yield f"starts        {self.failed_starts} given up for want of Postgres; {self.errors_logged} errors logged"
        yield f"changes       {self.changes}, told in {self.attempts} attempts: {_counted(self.answers)}"
        yield f"deliveries    {sum(self.deliveries.values())}: {_counted(self.deliveries)}"
        yield f"              {self.unheard} committed without their sender hearing of it"
        yield f"events        {self.events}, {self.stale} of them stale; {self.events_per_second:.0f} a second"
        yield f"answers       within {', '.join(f'{s * 1000:.0f} ms ({name})' for name, s in self.answered_within.items())}"
        yield f"downtime      {self.downtime:.0f} s without a commit, {self.longest_gap:.1f} s at the longest"
        yield f"violations    {sum(self.violations.values())}"
        for kind, count in self.violations.items():
            yield f"  {kind}: {count}"
            yield from (f"    {detail[:_LONGEST]}" for detail in self.details.get(kind, ()))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
