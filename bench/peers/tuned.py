"""A receiver that was tuned as far as a commit for each request allows: raw body, asyncpg, one prepared insert."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, Request, Response

_INSERT = "INSERT INTO deliveries (body) VALUES ($1) RETURNING id"
_SECRET = os.environ["SIGNING_SECRET"].encode()


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    """A connection needs no reset between inserts; the pool's own would be a second round trip for each request."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold connections; each prepares the statement once."""
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=16, max_size=16, reset=_leave_as_it_is) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/callbacks/products")
async def receive(request: Request) -> Response:
    """Check the secret, insert and commit, answer."""
    if not secrets.compare_digest(request.headers.get("x-signing-secret", "").encode(), _SECRET):
        return Response(status_code=401)
    body = await request.body()
    delivery_id = await app.state.pool.fetchval(_INSERT, body.decode())
    return Response(
        b'{"status":"accepted","delivery_id":"%b"}' % str(delivery_id).encode(), media_type="application/json"
    )
