"""An unchanged job polled with its ETag, against a bare FastAPI route that returns the same bytes; and long-pollers.

One api process and one uvicorn process for the bare route, one client for both, on one machine. Then `pollers`
connections wait for news of a job (`?wait=20`), and single polls are timed beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from api.client import Client
from deploy.local.server import free_port
from tests.bench.orchestration_stack import Figures, bench, engine_stack, quantiles

_BARE = """
import sys, uvicorn
from fastapi import FastAPI, Response
app, body = FastAPI(), open(sys.argv[2], "rb").read()
@app.get("/v1/jobs/{job_id}")
def read(job_id: str) -> Response:
    return Response(body, media_type="application/json", headers={"etag": '"1"'})
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
"""


def measure(folder: Path, chosen: argparse.Namespace) -> Figures:
    """Requests/s of both, their ratio, and the latency of a poll beside many long-pollers."""
    with engine_stack(folder, workers=0, planners=0) as stack:  # nobody works: the job never changes
        assert stack.addresses is not None
        with Client(stack.addresses.api_url, api_key=stack.addresses.api_key) as client:
            media = [{"url": "s3://samples/a.png"}]
            job = client.submit("ocr", source={"type": "media", "media": media})
        port = int(stack.addresses.api_url.rsplit(":", 1)[1])
        path, key = f"/v1/jobs/{job.id}", stack.addresses.api_key
        etag, body = _ask(port, path, key)
        folder.joinpath("body").write_bytes(body)
        bare_port = free_port()
        bare = subprocess.Popen([sys.executable, "-c", _BARE, str(bare_port), str(folder / "body")])
        try:
            _await_port(bare_port)
            request = _request(path, key, etag)
            theirs = asyncio.run(_rate(bare_port, request, chosen.requests))
            ours = asyncio.run(_rate(port, request, chosen.requests))
        finally:
            bare.terminate()
            bare.wait(20)
        waiting = _request(f"{path}?wait=20", key, etag)
        beside = asyncio.run(_beside(port, waiting, request, chosen.pollers))
    return {
        "requests_a_second": round(ours),
        "bare_requests_a_second": round(theirs),
        "ratio": round(ours / theirs, 3),
        "long_pollers": chosen.pollers,
        **{f"poll_beside_them_{name}": value for name, value in quantiles(beside).items()},
    }


def _request(path: str, key: str, etag: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {key}"]
    if etag:
        lines.append(f"If-None-Match: {etag}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _ask(port: int, path: str, key: str) -> tuple[str, bytes]:
    async def ask() -> tuple[str, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head, body = await _exchange(reader, writer, _request(path, key, ""))
        writer.close()
        return next(line.split(": ", 1)[1] for line in head if line.lower().startswith("etag")), body

    return asyncio.run(ask())


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[Sequence[str], bytes]:
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    assert head[0].split()[1] in {"200", "304"}, head
    length = next((int(line.split(":")[1]) for line in head if line.lower().startswith("content-length")), 0)
    return head, await reader.readexactly(length) if head[0].split()[1] == "200" else b""


async def _rate(port: int, request: bytes, count: int, connections: int = 16) -> float:
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
    await asyncio.gather(*(_exchange(*pair, request) for pair in opened))

    async def many(pair: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        for _ in range(count // connections):
            await _exchange(*pair, request)

    began = time.monotonic()
    await asyncio.gather(*(many(pair) for pair in opened))
    took = time.monotonic() - began
    for _, writer in opened:
        writer.close()
    return count / took


async def _beside(port: int, waiting: bytes, request: bytes, pollers: int) -> list[float]:
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(pollers)]
    for _, writer in opened:
        writer.write(waiting)
    await asyncio.sleep(3)
    single = await asyncio.open_connection("127.0.0.1", port)
    took = []
    for _ in range(300):
        began = time.monotonic()
        await _exchange(*single, request)
        took.append(time.monotonic() - began)
        await asyncio.sleep(0.01)
    for _, writer in [*opened, single]:
        writer.close()
    return took


def _await_port(port: int) -> None:
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return


if __name__ == "__main__":
    bench("Orchestration: polling", measure, requests=4_000, pollers=2_000)
