"""What the leader shows for the alarms: Redis' memory, stuck jobs, failures by code."""

from __future__ import annotations

import pytest
import redis
from prometheus_client import REGISTRY

from pipelines.jobs.errors import BrokerUnavailable
from pipelines.jobs.outcomes import Failed
from pipelines.store import progress
from tests.integration.store.world import World
from workers.publish import Publisher
from workers.watch import Watch


class Away:
    def memory(self) -> tuple[int, int]:
        raise BrokerUnavailable("away")


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_redis_memory_is_shown_against_its_limit(world: World, redis_url: str) -> None:
    publisher = Publisher(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 64 * 1024 * 1024)
        try:
            Watch(world.database, publisher, stuck_after=900).look()
        finally:
            client.config_set("maxmemory", 0)
            publisher.close()
    used, limit = (sample("batchsight_redis_memory_bytes", of=of) for of in ("used", "limit"))
    assert limit == 64 * 1024 * 1024
    assert used is not None
    assert 100_000 < used < limit


def test_a_stuck_job_is_counted_and_named_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    job = world.job(world.tenant(), 1)
    world.age("job_progress", "updated_at", 901)
    watch = Watch(world.database, Away(), stuck_after=900)
    assert (watch.look(), watch.look()) == (1, 1)
    assert sample("batchsight_stuck_jobs") == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "job_stuck" in line]
    assert len(lines) == 1
    assert str(job) in lines[0]
    world.claim(job, [0])
    assert watch.look() == 0
    assert sample("batchsight_stuck_jobs") == 0


def test_a_fold_tells_failures_by_code(world: World) -> None:
    job = world.job(world.tenant(), 3)
    claimed = world.claim(job, [0, 1, 2])
    codes = ("corrupt_media", "corrupt_media", "worker_lost")
    world.complete(*((item, Failed(code=code, message="m")) for item, code in zip(claimed, codes, strict=True)))
    with world.database.begin() as conn:
        assert progress.fold(conn).failed == {"corrupt_media": 2, "worker_lost": 1}
    with world.database.begin() as conn:
        assert progress.fold(conn).failed == {}
