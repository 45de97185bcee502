"""The catalogue and its changes, without network or clock."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.simulator.catalog import Catalog, CatalogError, Change, ChangeRefusedError, read_jsonl
from app.simulator.options import OptionsError, SimulatorOptions

START = datetime(2026, 1, 31, 8, 0, 0, 250_000, tzinfo=UTC)


def a_catalog(**options: Any) -> Catalog:
    return Catalog(SimulatorOptions(**options), loaded_at=START)


def many_changes(catalog: Catalog, count: int) -> list[Change]:
    changes = (catalog.change(START + timedelta(seconds=number)) for number in range(1, count + 1))
    return [change for change in changes if change is not None]


def a_file(path: Path, *lines: str) -> Path:
    file = path / "catalog.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_equal_seeds_give_equal_changes_and_others_do_not() -> None:
    one, same, other = (many_changes(a_catalog(seed=seed), 200) for seed in (7, 7, 8))
    assert one == same
    assert one != other


def test_the_stream_holds_every_kind_of_change() -> None:
    kinds = {change.kind for change in many_changes(a_catalog(), 1_000)}
    assert kinds == {"stock", "price", "text", "category", "new", "gone", "back"}


def test_every_change_changes_something_and_updated_at_grows() -> None:
    catalog = a_catalog()
    seen = {str(entity["id"]): entity for entity in catalog.entities("product")}
    changes = many_changes(catalog, 600)
    assert len(changes) == 600
    for change in changes:
        before, after = seen.get(str(change.entity_id)), change.entity
        if before is not None:
            assert after["updated_at"] > before["updated_at"]
            assert {**after, "updated_at": ""} != {**before, "updated_at": ""}
            assert after["created_at"] == before["created_at"]
        assert after["updated_at"] == change.changed_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        seen[str(change.entity_id)] = after


def test_the_state_is_what_the_changes_add_up_to() -> None:
    catalog = a_catalog()
    state = {entity["id"]: entity for entity in catalog.entities("product")}
    for change in many_changes(catalog, 500):
        if change.action == "delete":
            del state[change.entity_id]
        else:
            state[change.entity_id] = change.entity
    assert sorted(state.values(), key=lambda entity: entity["id"]) == catalog.entities("product")


def test_states_handed_out_are_never_touched_again() -> None:
    catalog = a_catalog()
    before = catalog.entities("product")
    copy = json.loads(json.dumps(before))
    many_changes(catalog, 300)
    assert before == copy


def test_one_entity_does_not_change_twice_within_a_second() -> None:
    catalog = a_catalog()
    later = START + timedelta(seconds=1)
    assert catalog.change(START, entity_id="1001", kind="price") is None
    first = catalog.change(later, entity_id="1001", kind="price")
    assert first is not None
    assert catalog.change(later + timedelta(milliseconds=500), entity_id="1001", kind="stock") is None
    second = catalog.change(later + timedelta(seconds=1), entity_id="1001", kind="stock")
    assert second is not None
    assert second.entity["updated_at"] > first.entity["updated_at"]


def test_one_entity_may_change_twice_within_a_second_where_told_so() -> None:
    catalog = a_catalog(same_tick_changes=True)
    changes = [catalog.change(START, entity_id="1001", kind=kind) for kind in ("price", "stock")]
    assert [change.entity["updated_at"] for change in changes if change] == ["2026-01-31T08:00:00Z"] * 2


def test_without_a_rested_entity_nothing_changes_before_the_next_second() -> None:
    catalog = a_catalog()
    later = START + timedelta(seconds=1)
    changes = [catalog.change(later, kind="stock") for _ in range(26)]
    assert len({change.entity_id for change in changes if change}) == 25
    assert changes[-1] is None
    assert catalog.until_next_tick(later) == timedelta(milliseconds=750)


def test_a_clock_that_steps_back_never_takes_updated_at_along() -> None:
    catalog = a_catalog(same_tick_changes=True)
    change = catalog.change(START - timedelta(hours=1), entity_id="1001", kind="price")
    assert change is not None
    assert change.entity["updated_at"] == "2026-01-31T08:00:00Z"


def test_what_is_gone_can_come_back() -> None:
    catalog = a_catalog()
    gone = catalog.change(START + timedelta(seconds=1), kind="gone", entity_id="1001")
    assert gone is not None
    assert (gone.action, catalog.find("product", "1001")) == ("delete", None)
    assert [entity["id"] for entity in catalog.gone("product")] == [1001]
    assert gone.entity["deleted_at"] == "2026-01-31T08:00:01Z"
    with pytest.raises(ChangeRefusedError):
        catalog.change(START + timedelta(seconds=2), kind="price", entity_id="1001")
    back = catalog.change(START + timedelta(seconds=2), kind="back", entity_id="1001")
    assert back is not None
    assert (back.action, back.entity.get("deleted_at")) == ("create", None)
    assert catalog.find("product", "1001") == back.entity
    assert catalog.gone("product") == []


def test_the_last_entity_stays(tmp_path: Path) -> None:
    catalog = a_catalog(catalog=a_file(tmp_path, '{"id": 1}', '{"id": 2}'))
    later = START + timedelta(seconds=1)
    assert catalog.change(later, kind="gone")
    with pytest.raises(ChangeRefusedError):
        catalog.change(later, kind="gone")


def test_what_does_not_exist_or_does_not_apply_is_refused() -> None:
    catalog = a_catalog()
    for wanted in ({"entity_id": "9"}, {"kind": "back"}, {"kind": "price", "entity_type": "brand"}):
        with pytest.raises(ChangeRefusedError):
            catalog.change(START + timedelta(seconds=1), **wanted)  # type: ignore[arg-type] # one call for all


@pytest.mark.parametrize(
    ("style", "resolution", "written"),
    [
        ("zulu", "second", "2026-01-31T08:00:00Z"),
        ("offset", "second", "2026-01-31T08:00:00+00:00"),
        ("space", "second", "2026-01-31 08:00:00"),
        ("zulu", "microsecond", "2026-01-31T08:00:00.250000Z"),
    ],
)
def test_times_are_written_as_wanted(style: str, resolution: str, written: str) -> None:
    catalog = a_catalog(time_format=style, time_resolution=resolution)
    assert {entity["updated_at"] for entity in catalog.entities("product")} == {written}


def test_a_file_keeps_its_values_and_its_kind_of_id(tmp_path: Path) -> None:
    file = a_file(tmp_path, '{"id": "b", "name": "B", "price": 1.10}', "", '{"id": "a", "name": "Ä\u2028"}', "")
    catalog = a_catalog(catalog=file)
    assert [(entity["id"], entity["name"]) for entity in catalog.entities("product")] == [("a", "Ä\u2028"), ("b", "B")]
    new = catalog.change(START + timedelta(seconds=1), kind="new")
    assert new is not None
    assert isinstance(new.entity_id, str)


def test_number_ids_are_sorted_as_numbers_and_continued(tmp_path: Path) -> None:
    catalog = a_catalog(catalog=a_file(tmp_path, '{"id": 10}', '{"id": 9}'))
    new = catalog.change(START + timedelta(seconds=1), kind="new")
    assert new is not None
    assert [entity["id"] for entity in catalog.entities("product")] == [9, 10, 11]


def test_bare_entities_survive_every_change(tmp_path: Path) -> None:
    """A file whose products have nothing but an id must not break the stream."""
    catalog = a_catalog(catalog=a_file(tmp_path, *(f'{{"id": {number}}}' for number in range(30))))
    assert len(many_changes(catalog, 300)) == 300


def test_other_types_change_too() -> None:
    catalog = a_catalog(changing_types=("category", "brand", "concrete_entity"))
    changes = many_changes(catalog, 200)
    assert {change.entity_type for change in changes} == {"category", "brand", "concrete_entity"}
    assert {change.kind for change in changes} == {"text", "new", "gone", "back"}


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (['{"id": 1}', "{"], "line 2: no JSON"),
        (['{"id": 1}', "", "[]"], "line 3: not a JSON object"),
        (['{"sku": "x"}'], "line 1: no `id`"),
        (['{"id": true}'], "line 1: no `id`"),
        (['{"id": 1}', '{"id": "1"}'], "line 2: the id '1' came before"),
        (['{"id": 1, "price": NaN}'], "line 1: no JSON (NaN"),
        (['{"id": 1, "price": 1e400}'], "line 1: no JSON (1e400"),
        ([""], "holds no entity"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: list[str], complaint: str) -> None:
    with pytest.raises(CatalogError) as caught:
        read_jsonl(a_file(tmp_path, *lines))
    assert complaint in str(caught.value)
    assert "catalog.jsonl" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"nowhere\.jsonl: cannot be read"):
        read_jsonl(tmp_path / "nowhere.jsonl")


def test_every_wrong_option_is_named_at_once() -> None:
    with pytest.raises(OptionsError) as caught:
        SimulatorOptions(
            page_size=0, rate=-1, duplicate_probability=2, secret_place="somewhere", token="", api_delay=float("nan")
        )
    for name in ("page_size", "rate", "duplicate_probability", "secret_place", "token", "api_delay"):
        assert name in str(caught.value)
