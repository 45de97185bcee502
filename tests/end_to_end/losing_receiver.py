"""Receivers that a benchmark must not praise: FAULT says what is wrong with them."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import asyncpg
from fastapi import FastAPI, Request, Response

_FAULT = os.environ["FAULT"]
_INSERT = "INSERT INTO deliveries (body) VALUES ($1)"
_EVERY = 50
_numbers = count(1)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold connections."""
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=4, max_size=4) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/callbacks/products")
async def receive(request: Request) -> Any:
    """Keep the callback, or not."""
    body = (await request.body()).decode()
    is_faulty = next(_numbers) % _EVERY == 0
    if is_faulty and _FAULT == "answers first and forgets":
        return {"status": "accepted"}
    if is_faulty and _FAULT == "refuses":
        return Response(json.dumps({"detail": "not now"}), status_code=503, headers={"Retry-After": "1"})
    if is_faulty and _FAULT == "keeps twice":
        await app.state.pool.execute(_INSERT, body)
    if is_faulty and _FAULT == "keeps the neighbour's":
        body = json.dumps({"event": "product.updated", "data": {"id": 1}})
    if is_faulty and _FAULT == "dies":
        os._exit(1)
    if _FAULT == "stalls" and is_faulty:
        await asyncio.sleep(0.4)
    await app.state.pool.execute(_INSERT, body)
    return {"status": "accepted"}
