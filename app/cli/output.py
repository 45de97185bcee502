"""What commands print: records to standard output, as lines for people or as JSON; talk to standard error."""

import json
from collections.abc import Iterable, Mapping

import click


def say(message: str) -> None:
    """Talk: what was done, what comes next."""
    click.echo(message, err=True)


def print_record(record: Mapping[str, object], *, as_json: bool) -> None:
    """One record, at once: `name: value` lines, or a line of JSON."""
    if as_json:
        click.echo(json.dumps(record, default=str))
    else:
        for name, value in record.items():
            click.echo(f"{name}: {_shown(value)}")


def print_advice(word: str, what: str, todo: str | None) -> None:
    """Something found, under a word for how grave it is, and what to do about it; data, not talk."""
    margin = " " * _MARGIN
    click.echo(f"{word:<{_MARGIN}}{what}")
    if todo:
        click.echo(f"{margin}→ {todo}")


_MARGIN = 10


def print_records(records: Iterable[Mapping[str, object]], *, as_json: bool) -> None:
    """Records of one kind: a table with a heading, or one line of JSON each."""
    listed = list(records)
    if as_json:
        for record in listed:
            click.echo(json.dumps(record, default=str))
        return
    if not listed:
        return
    rows = [[name.upper() for name in listed[0]], *([_shown(value) for value in record.values()] for record in listed)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{content} {name}" for name, content in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return str(value)
