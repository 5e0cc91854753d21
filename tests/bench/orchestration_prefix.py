"""A prefix of 1,000,000 keys planned: keys a second, and peak memory at a tenth of them against the end.

The listing comes from a small S3 server in this process that makes up its keys as it is asked: a folder of so many
files would measure a file server. Time runs from the submission until the plan is done and committed. Nothing is
prepared meanwhile: no engine runs, and the cpu worker's only child is the planner. A turn of a plan ends after a
minute; it is then sent again and goes on from its cursor, and the wait for that counts. In between the child prepares
one item, and every key is the same picture: items that failed would let more through.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import psycopg
from PIL import Image

from api.client import Client
from deploy.local.stack import Stack
from tests.bench.orchestration_stack import Figures, bench, engine_stack, peaks

_BUCKET = "listed"
_PAGE = 1_000  # what S3 lists at once, whatever is asked for
_POLL = 0.05
_READ = {"skip_blank": False}  # a blank picture would end without an engine, and let the next one through


def measure(folder: Path, chosen: argparse.Namespace) -> Figures:
    """Seconds, keys/s, peak resident memory in MiB."""
    with _listing(chosen.keys) as listing:
        environment = {
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{listing.server_port}",
            "BATCHSIGHT_ALLOWED_BUCKETS": _BUCKET,
            "BATCHSIGHT_BLOB_URL": f"file://{folder / 'blobs'}",  # the listing's server stores nothing
            "BATCHSIGHT_MAX_PLANNED_ITEMS": str(chosen.keys),
            "BATCHSIGHT_READY_ITEMS": "1",
        }
        with engine_stack(folder, workers=0, processes=1, environment=environment) as stack:
            addresses = stack.addresses
            assert addresses is not None
            with (
                psycopg.connect(addresses.database_url, autocommit=True) as conn,
                Client(addresses.api_url, api_key=addresses.api_key) as client,
            ):
                before = peaks(stack)
                began = time.monotonic()
                source = {"type": "prefix", "url": f"s3://{_BUCKET}/p/"}
                job = client.submit("ocr", source=source, parameters=_READ)
                planned = _wait_planned(conn, stack, job.id, chosen.keys)
                seconds = time.monotonic() - began
                after = peaks(stack)
                _check(conn, job.id, chosen.keys)
    assert listing.pages >= chosen.keys / _PAGE
    return {
        "keys": chosen.keys,
        "seconds": round(seconds, 2),
        "keys_a_second": round(chosen.keys / seconds),
        "planner_messages": planned.messages,
        "planner_peak_mib_at_a_tenth": round(planned.peak_at_a_tenth, 1),
        "planner_peak_mib": round(planned.peak, 1),
        "api_peak_growth_mib": round(after["api"] - before["api"], 1),
    }


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """`messages`: how many it took, one a turn, and one more for each failure; the planner's peaks in MiB."""

    messages: int
    peak_at_a_tenth: float
    peak: float


def _wait_planned(conn: psycopg.Connection, stack: Stack, job_id: str, keys: int) -> _Planned:
    tenth: float | None = None
    peak = 0.0
    while True:
        row = conn.execute("SELECT plan_state, item_count, plan_attempt FROM jobs WHERE id = %s", (job_id,)).fetchone()
        assert row is not None
        state, items, messages = row
        assert state != "failed", "the plan failed"
        peak = max(peak, peaks(stack)["cpu"])  # a child that is replaced takes its own peak along
        if tenth is None and items >= keys / 10:
            tenth = peak
        if state == "done":
            assert tenth is not None, "the listing held less than a tenth of the keys"
            return _Planned(messages=messages, peak_at_a_tenth=tenth, peak=peak)
        time.sleep(_POLL)


def _check(conn: psycopg.Connection, job_id: str, keys: int) -> None:
    """Each key is one document and one item: none left out, none twice."""
    items = conn.execute("SELECT count(*) FROM items WHERE job_id = %s", (job_id,)).fetchone()
    assert items == (keys,), items
    named = conn.execute("SELECT count(*), count(DISTINCT name) FROM documents WHERE job_id = %s", (job_id,)).fetchone()
    assert named == (keys, keys), named


@contextmanager
def _listing(keys: int) -> Iterator[_Server]:
    server = _Server(keys)
    thread = threading.Thread(target=server.serve_forever, name="listing")
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    """The bucket: `keys` keys below `p/`, all of one width, so that their order is that of their numbers."""

    daemon_threads = True

    def __init__(self, keys: int) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self._numbers = range(keys)
        self._width = len(str(keys))
        out = BytesIO()
        Image.new("RGB", (8, 8)).save(out, "PNG")
        self.picture = out.getvalue()
        self.etag = hashlib.md5(self.picture, usedforsecurity=False).hexdigest()
        self.pages = 0

    def page(self, *, prefix: str, behind: str, most: int) -> str:
        """The keys that start with `prefix`, from the first one after `behind` on, as S3 lists them."""
        first = max(
            bisect_left(self._numbers, prefix, key=self._key),
            bisect_right(self._numbers, behind, key=self._key),
        )
        end = bisect_right(self._numbers, prefix, key=lambda number: self._key(number)[: len(prefix)])
        last = max(first, min(end, first + most))
        truncated = first < last < end
        self.pages += 1
        return "".join(
            (
                '<?xml version="1.0" encoding="UTF-8"?>',
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">',
                f"<Name>{_BUCKET}</Name><Prefix>{escape(prefix)}</Prefix>",
                f"<KeyCount>{last - first}</KeyCount><MaxKeys>{most}</MaxKeys>",
                f"<IsTruncated>{str(truncated).lower()}</IsTruncated>",
                f"<NextContinuationToken>{self._key(last - 1)}</NextContinuationToken>" if truncated else "",
                *(self._entry(number) for number in range(first, last)),
                "</ListBucketResult>",
            )
        )

    def _key(self, number: int) -> str:
        return f"p/{number:0{self._width}d}.png"

    def _entry(self, number: int) -> str:
        return (
            f"<Contents><Key>{self._key(number)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{self.etag}"</ETag><Size>{len(self.picture)}</Size></Contents>'
        )


class _Request(BaseHTTPRequestHandler):
    """ListObjectsV2 of the bucket and GetObject of its keys, signed or not; anything else is not implemented."""

    protocol_version = "HTTP/1.1"  # one connection for all pages, as S3 keeps it
    disable_nagle_algorithm = True  # the body would wait for the client to acknowledge the head, on each page
    server: _Server

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path.startswith(f"/{_BUCKET}/p/"):
            self._answer(self.server.picture, "image/png")
            return
        asked = {name: values[-1] for name, values in parse_qs(address.query).items()}
        if address.path.strip("/") != _BUCKET or asked.get("list-type") != "2":
            self.send_error(HTTPStatus.NOT_IMPLEMENTED)
            return
        page = self.server.page(
            prefix=asked.get("prefix", ""),
            behind=asked.get("continuation-token") or asked.get("start-after", ""),
            most=min(_PAGE, int(asked.get("max-keys", _PAGE))),
        )
        self._answer(page.encode(), "application/xml")

    def _answer(self, body: bytes, media_type: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{self.server.etag}"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Nothing: the table is all that a bench prints."""


if __name__ == "__main__":
    bench("Orchestration: planning a prefix", measure, keys=1_000_000)
