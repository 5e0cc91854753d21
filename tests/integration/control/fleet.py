"""A whole installation in one process: real leaders over real PostgreSQL and Redis, workers that misbehave by the dice.

The workers take messages from Redis and call the store as the real ones do; their work itself is a coin. They die with
leases in hand, come back as zombies, hear things twice, and some items kill whoever touches them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import redis

from pipelines.control.dispatch import Dispatcher, DispatchOptions
from pipelines.control.leadership import Leadership, terms
from pipelines.control.messages import QueueName
from pipelines.control.pressure import Shelf
from pipelines.control.sweep import Upkeep
from pipelines.jobs.errors import ServiceUnavailable
from pipelines.jobs.models import ClaimedItem, MediaRef
from pipelines.jobs.outcomes import Cancelled, Failed, Outcome, Released, Repair, Retry, Succeeded
from pipelines.store import documents, items, jobs
from pipelines.store.items import Key
from pipelines.store.jobs import FailedAtPlan, NeedsPaging, PlannedDocument, Single
from pipelines.store.leader import LeaderLost
from pipelines.store.session import Database
from tests.integration.store.world import key_of, prepared, result
from workers.publish import Publisher

LEASE = 1.0
WINDOW = 16


def planned(count: int) -> list[PlannedDocument]:
    """A mixed source: mostly single media, every fifth to be paged, every eleventh unusable."""
    found = []
    for n in range(count):
        media = (MediaRef(url=f"s3://bucket/{n}"),)
        sort: Single | NeedsPaging | FailedAtPlan = Single()
        if n % 11 == 10:
            sort = FailedAtPlan(code="media_not_found", message="gone")
        elif n % 5 == 4:
            sort = NeedsPaging()
        found.append(PlannedDocument(name=str(n), media=media, items=sort))
    return found


class Fleet:
    """`poison`: names of documents whose items kill their worker each time. Use as a context."""

    def __init__(self, database_url: str, redis_url: str, *, seed: int, documents: int, poison: Sequence[str]) -> None:
        self.database = Database(database_url, pool_size=12)
        self.redis = redis.Redis.from_url(redis_url)
        self._redis_url = redis_url
        self._source = planned(documents)
        self._poison = frozenset(poison)
        self._dice = random.Random(seed)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.accepted: Counter[tuple[uuid.UUID, int]] = Counter()
        self.happened: Counter[str] = Counter()
        self.deepest = 0
        self._zombies: list[tuple[float, ClaimedItem]] = []
        self._threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def __enter__(self) -> Fleet:
        for loop in (*[self._worker] * 4, *[self._leader] * 2, self._zombie):
            seed = self._dice.random()
            thread = threading.Thread(target=self._guarded, args=(loop, random.Random(seed)), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        self.database.close()
        self.redis.close()

    def wait(self, until: Callable[[], bool], *, seconds: float = 90) -> None:
        """Wait for it; the first failure of a thread is raised here."""
        end = time.monotonic() + seconds
        while not until():
            if self.failures:
                raise self.failures[0]
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.05)

    def _guarded(self, loop: Callable[[random.Random], None], dice: random.Random) -> None:
        while not self._stop.is_set():
            try:
                loop(dice)
            except (ServiceUnavailable, redis.RedisError):
                self.happened["server away"] += 1
            except LeaderLost:
                self.happened["leader lost"] += 1
            except BaseException as error:  # noqa: BLE001 - shown by `wait`
                self.failures.append(error)
                return

    def _leader(self, dice: random.Random) -> None:
        """Leads, now and then freezes past its lease with its old epoch in hand."""
        leadership = Leadership(self.database, f"leader {dice.random()}", terms(leader_lease=0.6, item_lease=LEASE))
        options = DispatchOptions(window=WINDOW, shelf=Shelf(items=40, bytes=10**9, least=8))
        dispatcher = Dispatcher(self.database, Publisher(self._redis_url), options)
        upkeep = Upkeep(self.database, redispatch_after=2.0, batch=7)
        while not self._stop.wait(0.02):
            if not leadership.step():
                continue
            epoch = leadership.epoch()
            assert epoch is not None
            if dice.random() < 0.005:
                self.happened["frozen leader"] += 1
                self._stop.wait(1.5)
            dispatcher.tick(epoch)
            with self._lock:
                self.deepest = max(self.deepest, *(int(self.redis.llen(name)) for name in QueueName))
            for chance, work in ((0.2, upkeep.end_finished), (0.2, upkeep.fold), (0.2, upkeep.sweep)):
                if dice.random() < chance:
                    work(epoch)

    def _worker(self, dice: random.Random) -> None:
        while not self._stop.is_set():
            got: Any = self.redis.brpop([str(name) for name in QueueName], timeout=1)
            if got is None:
                continue
            if dice.random() < 0.05:
                self.happened["message twice"] += 1
                self.redis.lpush(got[0], got[1])
            elif dice.random() < 0.03:
                self.happened["message lost"] += 1
                continue
            message = json.loads(got[1])
            arguments = json.loads(base64.b64decode(message["body"]))[0]
            task = getattr(self, message["headers"]["task"].replace("batchsight.", "_do_"))
            task(dice, uuid.UUID(arguments[0]), *arguments[1:])

    def _do_plan(self, dice: random.Random, job: uuid.UUID) -> None:
        with self.database.begin() as conn:
            lease = jobs.claim_plan(conn, job, worker="w", lease=LEASE)
        while lease is not None:
            start = (lease.cursor or {}).get("at", 0)
            if dice.random() < 0.1 and lease.losses < 2:
                self.happened["planner died"] += 1
                return
            chunk = self._source[start : start + 9]
            with self.database.begin() as conn:
                done = start + 9 >= len(self._source)
                lease = jobs.append_plan(conn, lease, documents=chunk, cursor={"at": start + 9}, done=done)
            if done:
                return

    def _do_paginate(self, dice: random.Random, job: uuid.UUID, docs: list[int]) -> None:
        with self.database.begin() as conn:
            claimed = documents.claim_documents(conn, job, docs, worker="w", lease=LEASE)
        for document in claimed:
            coin = dice.random()
            with self.database.begin() as conn:
                if coin < 0.08 and document.losses < 2:
                    self.happened["pager died"] += 1
                elif coin < 0.16:
                    documents.retry_document(conn, document, Retry(code="x", message="x", delay=0.05))
                elif coin < 0.3:
                    documents.fail_document(conn, document, code="encrypted_document", message="x")
                else:
                    documents.complete_document(conn, document, pages=dice.randint(1, 4))

    def _do_prepare(self, dice: random.Random, job: uuid.UUID, seqs: list[int], _solo: bool) -> None:
        with self.database.begin() as conn:
            claimed = items.claim_prepare(conn, job, seqs, worker="w", lease=LEASE)
        self._work(dice, claimed, good=lambda item: prepared(f"packs/{item.job_id}/{item.seq}"))

    def _do_infer(self, dice: random.Random, job: uuid.UUID, seq: int, _solo: bool) -> None:
        with self.database.begin() as conn:
            claimed = items.claim_infer(conn, [(job, seq)], worker="w", lease=LEASE)
        self._work(dice, claimed, good=lambda item: Succeeded(result=result(f"{item.seq} {item.attempt}")))

    def _work(
        self, dice: random.Random, claimed: Sequence[ClaimedItem], *, good: Callable[[ClaimedItem], Outcome]
    ) -> None:
        if not claimed:
            return
        poisoned = any(item.document.name in self._poison for item in claimed)
        if poisoned or (dice.random() < 0.04 and all(item.losses < 2 for item in claimed)):
            self.happened["worker died"] += 1
            if not poisoned:
                with self._lock:
                    self._zombies += [(time.monotonic() + dice.uniform(0.5, 2.5) * LEASE, item) for item in claimed]
            return
        with self.database.begin() as conn:
            beat = items.heartbeat(conn, [key_of(item) for item in claimed], lease=LEASE)
        entries: list[tuple[ClaimedItem, Outcome]] = []
        for item in claimed:
            coin = dice.random()
            outcome: Outcome = good(item)
            if key_of(item) in beat.cancelled:
                outcome = Cancelled()
            elif coin < 0.04:
                outcome = Retry(code="source_unavailable", message="x", delay=dice.uniform(0, 0.1))
            elif coin < 0.06:
                outcome = Released(reason="shutdown")
            elif coin < 0.08:
                outcome = Repair(code="pack_damaged", message="x")
            elif coin < 0.11:
                outcome = Failed(code="corrupt_media", message="x")
            entries.append((item, outcome))
        self._hand_in(entries)

    def _zombie(self, dice: random.Random) -> None:
        while not self._stop.wait(0.05):
            with self._lock:
                due = [item for at, item in self._zombies if at < time.monotonic()]
                self._zombies = [(at, item) for at, item in self._zombies if at >= time.monotonic()]
            for item in due:
                outcomes: list[Outcome] = [Succeeded(result=result("zombie")), Failed(code="zombie", message="x")]
                outcome = dice.choice(outcomes)
                if not self._hand_in([(item, outcome)]):
                    self.happened["zombie rejected"] += 1

    def _hand_in(self, entries: Sequence[tuple[ClaimedItem, Outcome]]) -> frozenset[Key]:
        with self.database.begin() as conn:
            accepted = items.complete(conn, entries)
        with self._lock:
            for item, outcome in entries:
                if isinstance(outcome, Succeeded | Failed | Cancelled) and key_of(item) in accepted:
                    self.accepted[item.job_id, item.seq] += 1
        return accepted

    def forget_everything(self) -> None:
        """FLUSHALL."""
        with contextlib.suppress(redis.RedisError):
            self.redis.flushall()
