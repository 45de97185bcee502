"""What the doctor tells of one thing that it tried."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """`wrong` needs a hand, `warning` may, `learned` and `unknown` are about what Jasper does not document."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    LEARNED = "learned"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Examined:
    """One thing that was tried: where, how it fared, what is so, and what to do about it."""

    area: str
    verdict: Verdict
    what: str
    todo: str | None = None

    def as_record(self) -> dict[str, object]:
        """For programs."""
        return {"area": self.area, "verdict": str(self.verdict), "what": self.what, "do": self.todo}


def judged(area: str, is_well: bool, what: str, todo: str) -> Examined:
    """Something that is either well or wrong; only then is there something to do."""
    return Examined(area, Verdict.OK, what) if is_well else Examined(area, Verdict.WRONG, what, todo)
