"""The ceiling: the least that a FastAPI route can do with a callback. It keeps nothing."""

from typing import Any

from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/callbacks/products")
async def receive(request: Request) -> dict[str, Any]:
    """Read the body, and say so."""
    body = await request.body()
    return {"status": "accepted", "bytes": len(body)}
