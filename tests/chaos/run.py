"""One run: start, load, harm, wait, check, report."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis

from api.client import BatchsightError as ClientError
from api.client import Job
from pipelines.control.messages import QueueName
from pipelines.jobs.errors import BatchsightError
from tests.chaos.faults import Faults
from tests.chaos.ledger import Accepted, Ledger, check
from tests.chaos.load import Load, PlannedJob
from tests.chaos.world import World

_CANCEL_AFTER = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`kills`: random kills after every fault has been injected once, spread while work is left."""

    items: int
    seed: int
    minutes: float
    poison: int = 1
    kills: int = 0
    pause: float = 1.0
    engine_seconds: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What happened. `seconds`: from the first submission to the last end."""

    plan: Plan
    ledger: Ledger
    faults: Sequence[dict[str, Any]]
    not_run: dict[str, str]
    kills: int
    seconds: float
    deepest_queue: int
    most_ready_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class _Meter:
    """Looks at queues and prepared bytes while the run lasts."""

    def __init__(self, world: World) -> None:
        self.deepest = self.most_bytes = 0
        self._world = world
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with redis.Redis.from_url(self._world.redis_url) as client:
            while not self._stop.wait(0.5):
                with suppress(redis.RedisError):
                    self.deepest = max(self.deepest, *(int(client.llen(name)) for name in QueueName))
                with suppress(BatchsightError), self._world.database.begin() as conn:
                    ready = "SELECT coalesce(sum(pack_bytes), 0) FROM items WHERE state = 'ready'"
                    self.most_bytes = max(self.most_bytes, int(conn.exec_driver_sql(ready).scalar_one()))


class _Submission:
    """All jobs, submitted from a thread of its own so that the api can die meanwhile."""

    def __init__(self, world: World, jobs: Sequence[PlannedJob]) -> None:
        self._world = world
        self._jobs = jobs
        self.accepted: list[tuple[PlannedJob, Job]] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="submission", daemon=True)
        self._thread.start()

    def join(self) -> list[tuple[PlannedJob, Job]]:
        """What was accepted: everything, or the error is raised."""
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self.accepted

    def _run(self) -> None:
        try:
            for job in self._jobs:
                key = str(uuid.uuid4())
                for _ in range(2):  # asked again under the same key: the same job
                    answer = self._world.clients[job.tenant].submit(
                        job.kind, source=job.source, parameters=job.parameters, idempotency_key=key
                    )
                self.accepted.append((job, answer))
        except Exception as error:  # noqa: BLE001 - raised in `join`
            self.error = error


def run(plan: Plan, folder: Path) -> Report:
    """Run the plan below `folder`, which must be empty."""
    draw = random.Random(plan.seed)
    with World(folder / "stack", engine_seconds=plan.engine_seconds) as world:
        jobs = Load(world.bucket, plan.seed).jobs(plan.items, poison=plan.poison)
        time.sleep(1.5)  # the server's listings are a second old at most
        meter = _Meter(world)
        faults = Faults(world, draw, folder / "faults.jsonl")
        began = time.monotonic()
        until = began + plan.minutes * 60
        submission = _Submission(world, jobs)
        time.sleep(0.3)
        faults.kill("api")
        accepted = submission.join()
        _cancel(world, accepted, faults)
        schedule = faults.once_each()
        while time.monotonic() < until and (schedule or faults.kills() < plan.kills):
            if schedule:
                schedule.pop()()
            elif _finished(world, accepted):
                break
            else:
                faults.kill(draw.choice(("api", "dispatcher-1", "dispatcher-2", "cpu-1", "cpu-2", "gpu-1", "gpu-2")))
            time.sleep(draw.uniform(0.5, 1.5) * plan.pause)
        owed = [
            Accepted(label=job.label, job_id=uuid.UUID(answer.id), wanted=job.wanted, cancelled=job.cancelled)
            for job, answer in accepted
        ]
        owed += _redrive(world, accepted, until, faults)
        _wait(world, owed, until)
        seconds = time.monotonic() - began
        meter.close()
        ledger = check(world.database, owed, tile=world.tile, logs=world.logs)
        report = Report(
            plan=plan,
            ledger=ledger,
            faults=faults.done,
            not_run=faults.not_run,
            kills=faults.kills(),
            seconds=round(seconds, 1),
            deepest_queue=meter.deepest,
            most_ready_bytes=meter.most_bytes,
        )
        folder.joinpath("report.json").write_text(json.dumps(report.to_json(), indent=2, default=str))
        return report


def _cancel(world: World, accepted: Sequence[tuple[PlannedJob, Job]], faults: Faults) -> None:
    time.sleep(_CANCEL_AFTER)
    for job, answer in accepted:
        if job.cancelled:
            world.clients[job.tenant].cancel(answer.id)
            faults.note("cancel", job=job.label)


def _redrive(world: World, accepted: Sequence[tuple[PlannedJob, Job]], until: float, faults: Faults) -> list[Accepted]:
    """The decoders' poison once more, while other jobs still run: a child job of the failed items, ending alike."""
    job, answer = next((job, answer) for job, answer in accepted if any(want.code for want in job.wanted.values()))
    client = world.clients[job.tenant]
    while time.monotonic() < until:
        with suppress(ClientError):
            if client.job(answer.id).finished:
                child = client.redrive(answer.id)
                faults.note("redrive", job=job.label)
                wanted = {name: want for name, want in job.wanted.items() if want.code}
                return [Accepted(label=f"{job.label} redriven", job_id=uuid.UUID(child.id), wanted=wanted)]
        time.sleep(0.5)
    return []


def _finished(world: World, accepted: Sequence[tuple[PlannedJob, Job]]) -> bool:
    return _open(world, [uuid.UUID(answer.id) for _, answer in accepted]) == 0


def _wait(world: World, owed: Sequence[Accepted], until: float) -> None:
    while time.monotonic() < until and _open(world, [job.job_id for job in owed]):
        time.sleep(0.5)
    time.sleep(2.5)  # the last snapshot of the counters


def _open(world: World, jobs: Sequence[uuid.UUID]) -> int:
    try:
        with world.database.begin() as conn:
            unfinished = "SELECT count(*) FROM jobs WHERE id = ANY(%s) AND finished_at IS NULL"
            return int(conn.exec_driver_sql(unfinished, (list(jobs),)).scalar_one())
    except BatchsightError:
        return len(jobs)  # the database is down just now
