"""A connection to the server to which anything may be written."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx


class Wire:
    """One connection, to which anything may be written."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        with suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes] | None:
        """The next answer; None where the connection ended without one."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            assert status_line.startswith("HTTP/1.1 ")
            return int(status_line.split(" ")[1]), headers, await self._body(headers)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(headers.get("content-length", "0")))
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return body

    async def rest(self) -> bytes:
        """Everything that comes until the connection ends."""
        with suppress(ConnectionError):
            return await self._reader.read()
        return b""


@asynccontextmanager
async def wire(
    http: httpx.AsyncClient, *, receive_buffer: int | None = None, source: str = "127.0.0.1"
) -> AsyncIterator[Wire]:
    """A connection to the server behind `http`, from the address `source`; no test waits longer than 20 s on it."""
    connection = socket.socket()
    connection.bind((source, 0))
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (http.base_url.host, http.base_url.port))
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(sock=connection, limit=receive_buffer or 2**16)
        try:
            yield Wire(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
