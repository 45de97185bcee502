"""The ceiling: the least that a FastAPI route can do with a callback. It keeps nothing."""

from fastapi import FastAPI, Request, Response

app = FastAPI()


@app.post("/callbacks/products")
async def receive(request: Request) -> Response:
    """Read the body, and say so."""
    body = await request.body()
    return Response(b'{"status":"accepted","bytes":%d}' % len(body), media_type="application/json")
