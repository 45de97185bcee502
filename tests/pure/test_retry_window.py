"""How long Jasper keeps retrying, and how long an old secret therefore stays accepted."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.registration.retry_window import ATTEMPT_MARGIN, LONGEST_SPAN, RetryPlan, retirement, retry_span


@pytest.mark.parametrize(
    ("plan", "seconds"),
    [
        (RetryPlan("no_retry", 300, 5), 0),
        (RetryPlan("linear", 300, 0), 0),
        (RetryPlan("linear", 300, 5), 25 * 60),  # the documented example
        (RetryPlan("linear", 86_400, 100), 100 * 86_400),  # the longest the settings allow
        (RetryPlan("exponential", 60, 0), 0),
        (RetryPlan("exponential", 60, 1), 60),
        (RetryPlan("exponential", 60, 3), 60 + 120 + 240),
        (RetryPlan("exponential", 60, 100), LONGEST_SPAN.total_seconds()),
        (RetryPlan("fibonacci", 60, 3), 60 + 120 + 240),  # unknown: taken for the longest
        (RetryPlan("linear", 300, -1), 0),
    ],
)
def test_span_is_the_sum_of_the_waits(plan: RetryPlan, seconds: float) -> None:
    assert retry_span(plan) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("plan", "margins"),
    [(RetryPlan("no_retry", 300, 5), 1), (RetryPlan("linear", 300, 5), 6), (RetryPlan("exponential", 1, 2), 3)],
)
def test_credentials_retire_a_margin_for_each_attempt_after_the_last_retry(plan: RetryPlan, margins: int) -> None:
    assert retirement(plan) == retry_span(plan) + margins * ATTEMPT_MARGIN


plans = st.builds(
    RetryPlan,
    st.sampled_from(["no_retry", "linear", "exponential", "other"]),
    st.integers(-1, 2**63),
    st.integers(-1, 2**63),
)


@given(plans)
def test_window_is_finite_for_whatever_jasper_shows(plan: RetryPlan) -> None:
    """A webhook edited by hand may have any numbers; none may overflow."""
    assert timedelta(0) <= retry_span(plan) <= LONGEST_SPAN
    assert retry_span(plan) < retirement(plan)


@given(st.sampled_from(["linear", "exponential"]), st.integers(1, 86_400), st.integers(0, 100))
def test_one_retry_more_never_shortens_the_window(policy: str, interval: int, limit: int) -> None:
    fewer, more = RetryPlan(policy, interval, limit), RetryPlan(policy, interval, limit + 1)
    assert retry_span(fewer) <= retry_span(more)


@given(st.integers(1, 86_400), st.integers(0, 100))
def test_exponential_is_never_shorter_than_linear(interval: int, limit: int) -> None:
    exponential, linear = RetryPlan("exponential", interval, limit), RetryPlan("linear", interval, limit)
    assert retry_span(exponential) >= retry_span(linear)
