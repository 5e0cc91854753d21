"""An engine worker as a process: its bulk slots are full for ever, and an interactive item is taken all the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.control.messages import InferMessage
from pipelines.jobs.models import JobPriority, PackRef
from pipelines.jobs.outcomes import Prepared
from pipelines.kinds.base import MediaClass, MediumView
from pipelines.media import pack as packs
from pipelines.media.pack import TilePack
from pipelines.steps.prepare import media_hash_of, with_views
from pipelines.store import packs as rows
from tests.integration.store.world import World
from workers.publish import Publisher

PATIENCE = 60.0
SLOW = """
from pipelines.engine.fake import FakeEngine, FakeOptions
from pipelines.settings import Settings
from workers.lifecycle import run_gpu_worker
raise SystemExit(run_gpu_worker(Settings(), load=lambda s: FakeEngine(FakeOptions(slots=s.engine_slots, seconds=600))))
"""


@pytest.fixture
def environment(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "BATCHSIGHT_BLOB_URL": f"file://{tmp_path}",
        "BATCHSIGHT_ENGINE_SLOTS": "3",
        "BATCHSIGHT_DRAIN_SECONDS": "0",
    }


@pytest.fixture
def worker(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SLOW], env=environment)
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


def ready_job(world: World, count: int, priority: JobPriority) -> uuid.UUID:
    """A job whose items wait for an engine, their small pack in its row."""
    tenant = world.tenant()
    pack = TilePack.of(np.full((1, 448, 448, 3), 9, np.uint8), (1,))
    pack = with_views(pack, (MediumView(media_class=MediaClass.IMAGE, images=1),))  # type: ignore[assignment]
    data = packs.encode(pack)
    ref = PackRef(key=f"packs/{tenant}", sha256=hashlib.sha256(data).hexdigest(), size=len(data), tiles=1)
    with world.database.begin() as conn:
        new = rows.NewPack(pack=ref, media_hash=media_hash_of(pack), data=data)
        rows.record(conn, tenant_id=tenant, packs=[new])
    job = world.job(tenant, count, priority=priority)
    outcome = Prepared(pack=ref, media_hash=media_hash_of(pack))
    world.complete(*((item, outcome) for item in world.claim(job, range(count))))
    return job


def wait_for(world: World, job: uuid.UUID, states: dict[str, int]) -> None:
    until = time.monotonic() + PATIENCE
    while world.states(job) != states:
        assert time.monotonic() < until, world.states(job)
        time.sleep(0.1)


def test_an_interactive_item_has_a_slot_of_its_own_beside_any_bulk_job(
    world: World, redis_url: str, worker: subprocess.Popen[bytes]
) -> None:
    bulk = ready_job(world, 20, JobPriority.NORMAL)
    chat = ready_job(world, 2, JobPriority.INTERACTIVE)
    publisher = Publisher(redis_url)
    publisher.publish([InferMessage(job_id=bulk, seq=seq, solo=False, interactive=False) for seq in range(20)])
    wait_for(world, bulk, {"inferring": 2, "ready": 18})
    publisher.publish([InferMessage(job_id=chat, seq=seq, solo=False, interactive=True) for seq in range(2)])
    wait_for(world, chat, {"inferring": 1, "ready": 1})
    assert world.states(bulk) == {"inferring": 2, "ready": 18}
    publisher.close()
    worker.terminate()
    assert worker.wait(PATIENCE) == 0
    assert world.states(chat) == {"ready": 2}, "given back"
    assert world.states(bulk) == {"ready": 20}
