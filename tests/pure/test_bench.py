"""That the benchmark's figures mean what they say."""

import json
from itertools import islice
from pathlib import Path
from statistics import median

import pytest

from bench.load import percentile
from bench.measure import Round, rows_problem
from bench.products import bodies
from bench.report import Spread, ratio, summarise
from bench.requests import write_requests

HEADERS = {"X-Signing-Secret": "secret"}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (0.999, 100), (1.0, 100)]
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(share: float, expected: int) -> None:
    assert percentile(list(range(1, 101)), share) == expected
    assert percentile([7.0], share) == 7.0


def test_ratios_are_of_medians_and_of_rounds_that_belong_together() -> None:
    service = [Round(subject="service", way="w", rate=rate) for rate in (100, 400, 300)]
    peer = [Round(subject="peer", way="w", rate=rate) for rate in (50, 100, 300)]
    found = ratio(service, peer)
    assert found is not None
    assert found.of_medians == 300 / 100
    assert found.of_rounds == median([2, 4, 1])


def test_a_round_with_a_problem_counts_for_nothing_but_is_told() -> None:
    rounds = [Round(subject="service", way="w", rate=rate) for rate in (100, 200, 300)]
    rounds.append(Round(subject="service", way="w", rate=9_000, problem="3 callbacks are lost"))
    [found] = summarise(rounds)
    assert found.rate == Spread(200, 100, 300)
    assert (found.rounds, found.problems) == (3, ["3 callbacks are lost"])


def test_a_ratio_leaves_out_a_round_that_either_of_the_two_failed() -> None:
    service = [Round(subject="service", way="w", rate=100), Round(subject="service", way="w", rate=100)]
    peer = [Round(subject="peer", way="w", rate=900, problem="lost"), Round(subject="peer", way="w", rate=50)]
    found = ratio(service, peer)
    assert found is not None
    assert (found.of_medians, found.of_rounds) == (2, 2)
    assert ratio(service, peer[:1]) is None


@pytest.mark.parametrize(
    ("acknowledged", "failed", "rows", "distinct", "said"),
    [
        (100, 0, 100, 100, None),
        (100, 5, 103, 103, None),  # answered with an error, and committed all the same
        (100, 0, 99, 99, "1 of 100 callbacks that were answered with 2xx are lost"),
        (100, 5, 99, 99, "1 of 100 callbacks that were answered with 2xx are lost"),
        (100, 0, 100, 99, "1 of 100 rows are there twice"),
        (100, 1, 102, 102, "102 rows came of 100 callbacks answered with 2xx and 1 otherwise"),
    ],
)
def test_rows_that_do_not_agree_with_the_answers_are_found(
    acknowledged: int, failed: int, rows: int, distinct: int, said: str | None
) -> None:
    assert rows_problem(acknowledged=acknowledged, failed=failed, rows=rows, distinct=distinct) == said


def test_every_body_is_new_and_of_a_believable_size() -> None:
    made = list(islice(bodies(), 5_000))
    assert len(set(made)) == len(made)
    sizes = sorted(map(len, made))
    assert sizes[0] > 1_000
    assert sizes[-1] < 8_200
    assert 2_500 < median(sizes) < 3_500


def test_callbacks_create_products_and_then_change_them_as_time_goes_on() -> None:
    latest: dict[int, dict[str, object]] = {}
    created = changed = 0
    last_time = ""
    for body in islice(bodies(), 2_000):
        callback = json.loads(body)
        product = callback["data"]
        before = latest.get(product["id"])
        assert callback["event"] == ("product.created" if before is None else "product.updated")
        assert product["updated_at"] > last_time
        last_time = product["updated_at"]
        created += before is None
        if before is not None:
            changed += any(before.get(name) != product[name] for name in product.keys() - {"updated_at"})
        latest[product["id"]] = product
    assert 0.2 < created / 2_000 < 0.3
    assert changed > 0.95 * (2_000 - created)


def test_products_of_a_catalogue_become_callbacks_with_ids_of_their_own() -> None:
    made = [json.loads(body) for body in islice(bodies([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]), 200)]
    created = [one["data"] for one in made if one["event"] == "product.created"]
    assert {one["name"] for one in created} == {"a", "b"}
    assert len({one["id"] for one in created}) == len(created)


def test_prepared_requests_are_given_back_whole(tmp_path: Path) -> None:
    made = list(islice(bodies(), 50))
    requests = write_requests(tmp_path / "requests", ["POST /callbacks/products"] * 50, made, HEADERS)
    assert len(requests) == 50
    for number, body in enumerate(made):
        head, _, content = bytes(requests[number]).partition(b"\r\n\r\n")
        assert content == body == requests.body(number)
        assert head.startswith(b"POST /callbacks/products HTTP/1.1\r\n")
        assert b"\r\nX-Signing-Secret: secret\r\nContent-Length: %d" % len(body) in head
    assert requests.body_bytes(10, 5) == sum(map(len, made[10:15]))
