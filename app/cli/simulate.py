"""`simulate`: the Jasper simulator on its own, until Ctrl-C.

The options are derived from the fields of `SimulatorOptions`, so that every switch is one here, with the same name,
default and sentence of help. Talks on stderr only; nothing here knows what a switch does.
"""

import asyncio
import signal
import types
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from app.simulator import OptionsError, SimulatorOptions, running_simulator
from app.simulator.api import API_PATH
from app.simulator.catalog import CatalogError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _switches(command: _Command) -> _Command:
    """Give a command one option for each field of SimulatorOptions."""
    hints = get_type_hints(SimulatorOptions, include_extras=True)
    # Options show in the reverse of the order in which decorators are applied.
    for field in reversed(fields(SimulatorOptions)):
        if field.default is MISSING:
            raise TypeError(f"{field.name} has no default")
        annotated = hints[field.name]
        if get_origin(annotated) is not Annotated:
            raise TypeError(f"{field.name} has no sentence of help")
        kind, sentence = get_args(annotated)
        flag = f"--{field.name.replace('_', '-')}"
        command = click.option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            field.name,
            default=field.default,
            show_default=field.default is not None,
            help=sentence,
            **_click_type(kind),
        )(command)
    return command


def _click_type(kind: Any) -> dict[str, Any]:
    """How click is to read a value of this type."""
    if get_origin(kind) is Literal:
        return {"type": click.Choice(get_args(kind))}
    if get_origin(kind) is tuple:
        return {"type": click.Choice(get_args(get_args(kind)[0])), "multiple": True}
    if isinstance(kind, types.UnionType):
        return {"type": click.Path(dir_okay=False, path_type=Path), "metavar": "FILE.jsonl"}
    return {} if kind is bool else {"type": kind}


@click.command("simulate")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: a free one.")
@_switches
def simulate(host: str, port: int, **switches: Any) -> None:
    """Run a simulated Jasper PIM: its webhook API, a catalogue that changes, and callbacks.

    Give the API base and the token that it prints to a receiver as JASPER_API_URL and JASPER_API_TOKEN. Ctrl-C ends it.
    """
    try:
        options = SimulatorOptions(**switches)
        asyncio.run(_simulate_until_signal(options, host, port))
    except (OptionsError, CatalogError) as exc:
        raise click.UsageError(str(exc)) from exc
    except OSError as exc:
        raise click.ClickException(f"cannot listen on {host} port {port}: {exc.strerror or exc}") from exc


async def _simulate_until_signal(options: SimulatorOptions, host: str, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running_simulator(options, host=host, port=port) as simulator:
        products = len(simulator.catalog.entities("product"))
        click.echo(f"Simulated Jasper with {products} products. Ctrl-C ends it.", err=True)
        click.echo(f"  API base  {simulator.base_url}{API_PATH}", err=True)
        click.echo(f"  token     {simulator.token}", err=True)
        click.echo(f"  control   {simulator.base_url}/_simulator/", err=True)
        await stop.wait()
        tally = simulator.sender.statistics
    click.echo(
        f"{tally.callbacks} callbacks: {tally.delivered} delivered, {tally.lost} lost, {tally.dropped} dropped,"
        f" {simulator.sender.pending} unsettled; {tally.attempts} attempts.",
        err=True,
    )
