"""Items a second through submit, plan, prepare, infer and complete, against a bare chain of two Celery tasks.

Both on the same servers, in one run, one after the other: the chain has a Redis result backend, as many prefork
children for its first task and as many threads for its second as Batchsight has, reads the same picture from S3 in the
first and does nothing in the second. What Batchsight adds is durability, decoding in a child, tiles and packs; so the
chain is measured a second time with the tiles cut in its first task: the same work, without the promise. Also: the time
from submission to claim by the engine of single interactive items on the idle system, and the processor time of both
sides (idle servers of the other side included).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api.client import Client
from deploy.local.stack import SAMPLES_BUCKET, Stack
from pipelines.store.session import Database
from tests.bench.orchestration_chain import create_chain_app
from tests.bench.orchestration_processor import processor_seconds
from tests.bench.orchestration_stack import Figures, bench, engine_stack, quantiles, write_pictures

_REPOSITORY = Path(__file__).resolve().parents[2]
_SERVE = "import sys; from tests.bench.orchestration_chain import serve; serve(*sys.argv[1:])"
_PROCESSES, _SLOTS = 2, 64
_READ = {"skip_blank": False}  # pictures of one colour bear no text, and the engine is what is measured


def measure(folder: Path, chosen: argparse.Namespace) -> Figures:
    """Items/s of both, their ratio, and the hand-off."""
    with engine_stack(folder, slots=_SLOTS, processes=_PROCESSES) as stack:
        addresses = stack.addresses
        assert addresses is not None
        prefix = write_pictures(stack, "load", chosen.items)
        time.sleep(1.5)  # the S3 server's listings are a second old at most
        with Client(addresses.api_url, api_key=addresses.api_key) as client:
            client.wait(
                client.submit("ocr", source=_prefix(write_pictures(stack, "warm", 50)), parameters=_READ).id, timeout=60
            )
            began, spent = time.monotonic(), processor_seconds(os.getpid())
            job = client.wait(client.submit("ocr", source=_prefix(prefix), parameters=_READ).id, timeout=1_200)
            ours, our_processor = time.monotonic() - began, processor_seconds(os.getpid()) - spent
            hand_off = quantiles(_hand_offs(client, addresses.database_url, prefix, chosen.singles))
        assert job.counts["succeeded"] == chosen.items, job
        chain, chain_processor = _chain(stack, chosen.items, cut=False)
        cutting, cutting_processor = _chain(stack, chosen.items, cut=True)
    return {
        "items": chosen.items,
        "items_a_second": round(chosen.items / ours, 1),
        "chain_items_a_second": round(chosen.items / chain, 1),
        "cutting_chain_items_a_second": round(chosen.items / cutting, 1),
        "ratio": round(chain / ours, 3),
        "ratio_to_cutting_chain": round(cutting / ours, 3),
        "processor_ms_an_item": round(1000 * our_processor / chosen.items, 1),
        "chain_processor_ms_an_item": round(1000 * chain_processor / chosen.items, 1),
        "cutting_chain_processor_ms_an_item": round(1000 * cutting_processor / chosen.items, 1),
        **{f"hand_off_{name}": value for name, value in hand_off.items()},
    }


def _prefix(url: str) -> dict[str, str]:
    return {"type": "prefix", "url": url}


def _hand_offs(client: Client, database_url: str, prefix: str, count: int) -> list[float]:
    """From the job's row to the claim by the engine, for one prepared item at a time on the idle system."""
    ids = []
    for number in range(count):
        source = {"type": "media", "media": [{"url": f"{prefix}{number:07d}.png"}]}
        ids.append(
            client.wait(client.submit("ocr", source=source, parameters=_READ, priority="interactive").id, timeout=60).id
        )
    database = Database(database_url)
    with database.begin() as conn:
        took = conn.exec_driver_sql(
            "SELECT extract(epoch FROM i.started_at - j.created_at) FROM items i JOIN jobs j ON j.id = i.job_id"
            " WHERE j.id = ANY(%s::uuid[])",
            (ids,),
        )
        values = [float(value) for value in took.scalars()]
    database.close()
    return values


def _chain(stack: Stack, items: int, *, cut: bool) -> tuple[float, float]:
    environment = stack.environment
    keys = [f"load/{number:07d}.png" for number in range(items)]
    with _worker(stack, "first", "prefork", _PROCESSES), _worker(stack, "second", "threads", _SLOTS):
        app = create_chain_app(environment)
        app.send_task("chain.both", (SAMPLES_BUCKET, keys[0]), {"cut": cut}).get(timeout=60)
        began, spent = time.monotonic(), processor_seconds(os.getpid())
        first = [app.signature("chain.first", (SAMPLES_BUCKET, key), {"cut": cut}) for key in keys]
        sent = [each | app.signature("chain.second") for each in first]
        results = [chain.apply_async() for chain in sent]
        until = began + 300
        for result in results:
            while not result.ready():  # `get` waits for a notice, and one in some thousands never comes
                assert time.monotonic() < until, f"the chain lost {result.id}"
                time.sleep(0.01)
            result.get()
        return time.monotonic() - began, processor_seconds(os.getpid()) - spent


@contextmanager
def _worker(stack: Stack, queue: str, pool: str, concurrency: int) -> Iterator[None]:
    with (stack.folder / f"chain-{queue}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, queue, pool, str(concurrency)],
            cwd=_REPOSITORY,
            env={**stack.environment, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(_REPOSITORY)},
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    bench("Orchestration: throughput", measure, items=2_000, singles=30)
