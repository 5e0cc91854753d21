"""One run: start, load, harm, wait, check, report."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import redis

from api.client import BatchsightError as ClientError
from api.client import Job
from pipelines.control.messages import QueueName
from pipelines.jobs.errors import BatchsightError
from tests.chaos import claims
from tests.chaos.answers import disagreements
from tests.chaos.faults import Faults
from tests.chaos.ledger import Accepted, Ledger, check
from tests.chaos.load import Load, PlannedJob
from tests.chaos.world import LEASE, WINDOW, World

_ASKED_AGAIN = 200
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`kills`: rounds of all faults are made until so many processes were killed, at least one.

    `poison`: items of each sort that fails alone; `killers`: items that take an engine worker along, three times each.
    `asked`: interactive jobs of one picture, submitted one by one while faults are injected.
    `pause`: seconds between faults, on average.
    """

    items: int
    seed: int
    minutes: float
    poison: int = 1
    killers: int = 1
    kills: int = 0
    pause: float = 0.7
    engine_seconds: float = 0.7
    asked: int = 40


@dataclass(frozen=True, kw_only=True)
class Report:
    """What happened. `seconds`: from the first submission to the last end. `hits`: by fault, what all of them hit."""

    plan: Plan
    ledger: Ledger
    faults: Sequence[dict[str, Any]]
    not_run: dict[str, str]
    kills: int
    seconds: float
    deepest_queue: int
    most_ready_bytes: int
    largest_pack: int

    @property
    def hits(self) -> dict[str, int]:
        """What each fault hit, all its times together."""
        found: dict[str, int] = {}
        for entry in self.faults:
            found[entry["fault"]] = found.get(entry["fault"], 0) + entry["hit"]
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values. The fault log as `seconds fault role hit`, one line each."""
        log = [f"{entry['at']:.0f} {entry['fault']} {entry.get('role', '-')} {entry['hit']}" for entry in self.faults]
        return {**asdict(self), "ledger": self.ledger.to_json(), "hits": self.hits, "faults": log}


class _Meter:
    """Looks at queues and prepared bytes while the run lasts; not at a queue that the harness itself has flooded."""

    def __init__(self, world: World) -> None:
        self.deepest = self.most_bytes = self.largest_pack = 0
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
            while not self._stop.wait(0.2):
                with suppress(redis.RedisError):
                    depth = max(int(client.llen(name)) for name in QueueName)
                    if self._world.flooded.is_set():
                        if depth <= WINDOW and not self._world.flooding.is_set():
                            self._world.flooded.clear()
                    else:
                        self.deepest = max(self.deepest, depth)
                with suppress(BatchsightError), self._world.database.begin() as conn:
                    ready = "SELECT coalesce(sum(pack_bytes), 0), coalesce(max(pack_bytes), 0) FROM items"
                    total, largest = conn.exec_driver_sql(f"{ready} WHERE state = 'ready'").one()
                    self.most_bytes = max(self.most_bytes, int(total))
                    self.largest_pack = max(self.largest_pack, int(largest))


class _Aside(Generic[T]):
    """Something that a client does while faults are injected: on a thread of its own; `join` raises what it raised."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._result: list[T] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="aside", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Not over yet."""
        return self._thread.is_alive()

    def join(self) -> T:
        """What came of it."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._work())
        except Exception as error:  # noqa: BLE001 - raised in `join`
            self._error = error


def run(plan: Plan, folder: Path) -> Report:
    """Run the plan below `folder`, which must be empty."""
    draw = random.Random(plan.seed)
    with World(folder / "stack", engine_seconds=plan.engine_seconds) as world:
        load = Load(world.bucket, plan.seed)
        jobs = load.jobs(plan.items, poison=plan.poison, killers=plan.killers)
        single = load.asked(plan.asked)
        time.sleep(1.5)  # the server's listings are a second old at most
        meter = _Meter(world)
        faults = Faults(world, draw, folder / "faults.jsonl")
        began = time.monotonic()
        until = began + plan.minutes * 60
        accepted: list[tuple[PlannedJob, Job]] = []
        submission = _Aside(lambda: _submit(world, jobs, accepted))
        while submission.running and not accepted:
            time.sleep(0.005)
        # Beside the submission of the others: on a busy machine the first job can end before that is over.
        cancelling = _Aside(lambda: _cancel(world, accepted, faults))
        under_way = submission.running  # some jobs are accepted, the others are not
        faults.kill("api")
        faults.note("kill_api_during_submit", hit=int(under_way))
        submission.join()
        harmed = threading.Event()
        asking = _Aside(lambda: _ask(world, single, accepted, harmed, pause=2 * plan.pause))
        redriven = _Aside(lambda: _redrive(world, accepted, until, faults))
        cancelling.join()
        _harm(plan, faults, draw, until, over=lambda: _open(world, accepted) == 0)
        harmed.set()
        faults.note("asked", hit=asking.join())
        owed = [
            Accepted(label=job.label, job_id=uuid.UUID(answer.id), wanted=job.wanted, cancelled=job.cancelled)
            for job, answer in accepted
        ]
        accepted += [(job, child) for job, child in redriven.join()]
        owed += [
            Accepted(
                label=f"{job.label} redriven",
                job_id=uuid.UUID(child.id),
                wanted={name: want for name, want in job.wanted.items() if want.code},
            )
            for job, child in redriven.join()
        ]
        _wait(world, accepted, until)
        seconds = time.monotonic() - began
        meter.close()
        faults.note("wrong_clock", role="cpu-2", hit=claims.passed(world.database, "cpu-2"))
        ledger = check(world.database, owed, tile=world.tile, lease=LEASE, logs=world.logs)
        report = Report(
            plan=plan,
            ledger=ledger,
            faults=faults.done,
            not_run=faults.not_run,
            kills=faults.kills(),
            seconds=round(seconds, 1),
            deepest_queue=meter.deepest,
            most_ready_bytes=meter.most_bytes,
            largest_pack=meter.largest_pack,
        )
    again = random.Random(plan.seed).sample(ledger.to_ask_again, min(_ASKED_AGAIN, len(ledger.to_ask_again)))
    ledger.broken += disagreements(world.checkpoint, again, tile=world.tile)
    folder.joinpath("report.json").write_text(json.dumps(report.to_json(), indent=2, default=str))
    return report


def _submit(world: World, jobs: Sequence[PlannedJob], accepted: list[tuple[PlannedJob, Job]]) -> None:
    for job in jobs:
        key = str(uuid.uuid4())
        for _ in range(2):  # asked again under the same key: the same job
            answer = world.clients[job.tenant].submit(
                job.kind, source=job.source, parameters=job.parameters, priority=job.priority, idempotency_key=key
            )
        accepted.append((job, answer))


def _ask(
    world: World,
    jobs: Sequence[PlannedJob],
    accepted: list[tuple[PlannedJob, Job]],
    over: threading.Event,
    *,
    pause: float,
) -> int:
    """Submit one job after the other until there are no more, or it is over; how many."""
    for number, job in enumerate(jobs):
        if over.wait(pause):
            return number
        _submit(world, [job], accepted)
    return len(jobs)


def _harm(plan: Plan, faults: Faults, draw: random.Random, until: float, *, over: Callable[[], bool]) -> None:
    """Every fault once; then again, round by round, until there were enough kills or nothing is left to harm."""
    schedule = faults.once_each()
    while time.monotonic() < until:
        if not schedule:
            if faults.kills() >= plan.kills or over():
                return
            schedule = faults.once_each()
        schedule.pop()()
        time.sleep(draw.uniform(0.5, 1.5) * plan.pause)


def _cancel(world: World, accepted: Sequence[tuple[PlannedJob, Job]], faults: Faults) -> None:
    """Once some of the job's items are under way."""
    job, answer = next((job, answer) for job, answer in accepted if job.cancelled)
    until = time.monotonic() + 30
    while time.monotonic() < until and not _count(world, "attempt > 0", answer):
        time.sleep(0.1)
    world.clients[job.tenant].cancel(answer.id)
    # What waits ends with the request itself, what is under way a moment later.
    faults.note("cancel", job=job.label, hit=_count(world, "(state = 'cancelled' OR finished_at IS NULL)", answer))


def _redrive(
    world: World, accepted: Sequence[tuple[PlannedJob, Job]], until: float, faults: Faults
) -> list[tuple[PlannedJob, Job]]:
    """The decoders' poison once more, while other jobs still run: a child job of the failed items, ending alike."""
    job, answer = next((job, answer) for job, answer in accepted if any(want.code for want in job.wanted.values()))
    client = world.clients[job.tenant]
    while time.monotonic() < until:
        with suppress(ClientError):
            if client.job(answer.id).finished:
                child = client.redrive(answer.id)
                faults.note("redrive", job=job.label, hit=_open(world, accepted))
                return [(job, child)]
        time.sleep(0.5)
    return []


def _wait(world: World, accepted: Sequence[tuple[PlannedJob, Job]], until: float) -> None:
    while time.monotonic() < until and _open(world, accepted):
        time.sleep(0.2)
    time.sleep(2.5)  # the last snapshot of the counters


def _count(world: World, condition: str, job: Job) -> int:
    with suppress(BatchsightError), world.database.begin() as conn:
        counted = f"SELECT count(*) FROM items WHERE job_id = %s AND {condition}"
        return int(conn.exec_driver_sql(counted, (uuid.UUID(job.id),)).scalar_one())
    return 0  # the database is down just now


def _open(world: World, accepted: Sequence[tuple[PlannedJob, Job]]) -> int:
    """Jobs that have not ended."""
    jobs = [uuid.UUID(job.id) for _, job in accepted]
    try:
        with world.database.begin() as conn:
            unfinished = "SELECT count(*) FROM jobs WHERE id = ANY(%s) AND finished_at IS NULL"
            return int(conn.exec_driver_sql(unfinished, (jobs,)).scalar_one())
    except BatchsightError:
        return len(jobs)  # the database is down just now
