"""The least of HTTP that a sender of callbacks needs: POST on connections that are kept, one request at a time on each.

An ordinary client spends more time on a request than the receiver; here the load is to be on the receiver.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NotHeardError(Exception):
    """There was no whole answer, for whatever reason; nobody knows whether the request was heard. The message is short."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Poster:
    """Connections to receivers on this machine, by port. An async context manager that closes them."""

    def __init__(self) -> None:
        self._idle: dict[int, list[_Connection]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connections in self._idle.values():
            for _, writer in connections:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def post(self, port: int, path: str, headers: dict[str, str], body: bytes) -> Response:
        """Send one request. Raises NotHeardError; may be cancelled at any moment, and then hangs up."""
        lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        try:
            reader, writer = await self._connect(port)
        except OSError as error:
            raise NotHeardError("refused") from error
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            await writer.drain()
            response = await _read(reader)
        except (OSError, EOFError) as error:
            writer.close()
            raise NotHeardError("cut off") from error
        except BaseException:
            writer.close()
            raise
        if response.headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.setdefault(port, []).append((reader, writer))
        return response

    async def _connect(self, port: int) -> _Connection:
        idle = self._idle.get(port, [])
        while idle:
            reader, writer = idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", port)


async def _read(reader: asyncio.StreamReader) -> Response:
    """One answer with a Content-Length, as receivers give to callbacks. Raises OSError and EOFError."""
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Response(int(first.split(" ")[1]), headers, await reader.readexactly(int(headers["content-length"])))
