"""How long Jasper keeps retrying a callback, and therefore how long an old secret may still arrive. Pure.

Documented by Jasper: `linear` waits a fixed time, `exponential` waits longer each time. That it
doubles is our assumption.
"""

from dataclasses import dataclass
from datetime import timedelta

ATTEMPT_MARGIN = timedelta(minutes=1)
"""What one attempt may take on top of the wait before it: Jasper's queue and its time-out, both undocumented."""

LONGEST_SPAN = timedelta(days=100)
"""No span is believed to be longer: the longest linear one the settings allow, so that it cuts exponential ones only."""

MOST_RETRIES = 1000
"""A larger limit, which only a webhook edited by hand can have, is not believed."""


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """How Jasper retries: `policy` is its word, `minimum_interval` is in seconds, `limit` counts retries."""

    policy: str
    minimum_interval: int
    limit: int

    @property
    def retries(self) -> int:
        """How many retries may follow the first attempt."""
        return 0 if self.policy == "no_retry" else min(max(0, self.limit), MOST_RETRIES)


def retry_span(plan: RetryPlan) -> timedelta:
    """From a callback's first failure to its last retry, after which it is lost to Jasper: the sum of the waits.

    A policy unknown to us is taken for the longest one, exponential.
    """
    interval = max(0, plan.minimum_interval)
    if plan.policy == "linear" or plan.retries == 0:
        waits = interval * plan.retries
    else:
        doublings = min(plan.retries, int(LONGEST_SPAN.total_seconds()).bit_length())  # more would exceed the longest
        waits = interval * (2**doublings - 1)
    return min(timedelta(seconds=min(waits, LONGEST_SPAN.total_seconds())), LONGEST_SPAN)


def retirement(plan: RetryPlan) -> timedelta:
    """How long credentials that were replaced must still be accepted: the span, and a margin for every attempt."""
    return retry_span(plan) + ATTEMPT_MARGIN * (plan.retries + 1)
