"""Dispatch: from claimable rows to messages, inside a small window.

One `tick` asks the broker how full each queue is, and moves as many rows as fit: mark, commit, publish. The order is
decided here, at the last moment, in SQL (`pipelines.store.dispatch`). Suspects go first, a few at a time; then plans,
documents and items by priority and fair share. What no longer fits is left unmarked and remembered as backlog, so that
the caller looks again soon; without a backlog nothing happens until somebody wakes the dispatcher.

A broker that forgot everything (restart, FLUSHALL) is recognised by a marker it no longer holds: all that was published
and not claimed is claimable again at once. So it is after a publication that failed half-way.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Connection

from pipelines.control.grouping import grouped
from pipelines.control.messages import (
    Broker,
    ExportMessage,
    InferMessage,
    Message,
    PaginateMessage,
    PlanMessage,
    PrepareMessage,
    QueueName,
)
from pipelines.control.pressure import Pace, Shelf, Suspects, Throttle, loads, suspects
from pipelines.jobs.errors import BrokerUnavailable
from pipelines.store import census, dispatch, export_leases, leader, workers
from pipelines.store.census import Busy
from pipelines.store.dispatch import Lane, Picked, Suspicion
from pipelines.store.leader import Epoch
from pipelines.store.session import Database
from pipelines.store.values import Wake

_log = structlog.get_logger(__name__)

STAGES = frozenset({Wake.PLAN, Wake.PAGINATE, Wake.PREPARE, Wake.INFER, Wake.EXPORT})
"""The wake-ups that mean dispatching."""

_LEAST_SPREAD = 8
_ASK_WORKERS = 5.0  # seconds
_WORKER_ALIVE = 60.0  # seconds

_ONCE = Suspicion(least=1, most=1)
_TWICE = Suspicion(least=2, most=99)
_LANES = (Lane(interactive=True), Lane(interactive=False))


@dataclass(frozen=True, kw_only=True)
class DispatchOptions:
    """`window`: messages that may lie in a queue. `group`: most ids a message. `suspects`: at most so many together.

    `exports`: so many are under way at once, for each fills a process of a cpu worker.

    `refill`: room in a non-interactive queue below which more is not fetched yet: a few larger picks instead of many.
    """

    window: int
    shelf: Shelf
    group: int = 8
    suspects: int = 8
    exports: int = 2

    @property
    def refill(self) -> int:
        """An eighth of the window."""
        return max(1, self.window // 8)


@dataclass(frozen=True, kw_only=True)
class Dispatched:
    """What a tick did. `backlog`: stages in which more waits than the queues had room for: look again very soon.

    `held`: stages in which more waits than back-pressure or the suspect lane lets through: look again soon.
    """

    published: int
    backlog: frozenset[Wake]
    held: frozenset[Wake] = frozenset()
    requeued: int = 0
    waiting: Mapping[QueueName, int] = field(default_factory=dict)
    """Messages that lay in the queues before the tick."""


@dataclass(kw_only=True)
class _Round:
    """One tick's state: what fits, what is said, what is left over."""

    room: dict[QueueName, int]
    messages: list[Message] = field(default_factory=list)
    backlog: set[Wake] = field(default_factory=set)
    held: set[Wake] = field(default_factory=set)
    suspects: Counter[tuple[Wake, int]] = field(default_factory=Counter)

    def fits(self, lane: Lane, *, engine: bool) -> int:
        return max(0, self.room[_queue(lane, engine=engine)])

    def say(self, lane: Lane, message: Message, *, engine: bool = False) -> None:
        self.messages.append(message)
        self.room[_queue(lane, engine=engine)] -= 1


class Dispatcher:
    """Not thread-safe: one thread of the leader ticks."""

    def __init__(
        self,
        database: Database,
        broker: Broker,
        options: DispatchOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._broker = broker
        self._options = options
        self._clock = clock
        self._throttles = {lane.interactive: Throttle(options.shelf) for lane in _LANES}
        self._uncertain = True
        self._spread = (-math.inf, _LEAST_SPREAD)
        self.pace = Pace()

    def tick(self, epoch: Epoch, stages: Collection[Wake] = STAGES) -> Dispatched:
        """Move what fits of `stages`. Raises `BrokerUnavailable`, `StoreUnavailable`, `LeaderLost`."""
        depths = self._broker.depths()
        requeued = 0
        if depths.forgotten or self._uncertain:
            requeued = self._start_over(epoch, forgotten=depths.forgotten)
            stages = STAGES
        room = {name: self._options.window - depths.waiting.get(name, 0) for name in QueueName}
        for name in (QueueName.CPU, QueueName.GPU):
            if room[name] < self._options.refill:
                room[name] = 0
        this = _Round(room=room)
        if all(n <= 0 for n in room.values()):
            return Dispatched(
                published=0, backlog=frozenset(stages) & STAGES, requeued=requeued, waiting=depths.waiting
            )
        with self._database.begin() as conn:
            leader.check(conn, epoch)
            self._pick(conn, this, frozenset(stages))
        self._publish(this.messages)
        return Dispatched(
            published=len(this.messages),
            backlog=frozenset(this.backlog),
            held=frozenset(this.held),
            requeued=requeued,
            waiting=depths.waiting,
        )

    def _start_over(self, epoch: Epoch, *, forgotten: bool) -> int:
        with self._database.begin() as conn:
            leader.check(conn, epoch)
            requeued = dispatch.requeue_stale(conn, 0.0)
        if forgotten:
            _log.warning("broker_forgot", requeued=requeued)
            self._broker.mark_memory()
        self._uncertain = False
        return requeued

    def _publish(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        try:
            self._broker.publish(messages)
        except BrokerUnavailable:
            self._uncertain = True  # some may have been sent; sending all again costs time only
            raise

    def _pick(self, conn: Connection, this: _Round, stages: frozenset[Wake]) -> None:
        if Wake.EXPORT in stages:
            self._exports(conn, this)
        if Wake.PLAN in stages:
            for lane in _LANES:
                self._plans(conn, this, lane)
        if Wake.PAGINATE in stages:
            busy = census.documents(conn)
            for lane in _LANES:
                self._documents(conn, this, lane, busy)
        if stages & {Wake.PREPARE, Wake.INFER}:
            busy = census.items(conn)
            for lane in _LANES:
                if Wake.INFER in stages:
                    self._infers(conn, this, lane, busy)
                if Wake.PREPARE in stages:
                    self._prepares(conn, this, lane, busy)

    def _exports(self, conn: Connection, this: _Round) -> None:
        """First, for they take few places: behind the items of a busy installation there would never be one."""
        lane = Lane(interactive=False)
        room = this.fits(lane, engine=False)
        if room:
            for export_id in export_leases.pick(conn, limit=room, most=self._options.exports):
                this.say(lane, ExportMessage(export_id=export_id))
        else:
            this.backlog.add(Wake.EXPORT)

    def _messages(self, conn: Connection, room: int) -> int:
        """Into how many messages of several ids a pick is cut: enough for every idle worker, no more than fit."""
        asked, most = self._spread
        if self._clock() - asked > _ASK_WORKERS:
            most = max(_LEAST_SPREAD, 2 * workers.slots(conn, "cpu", within=_WORKER_ALIVE))
            self._spread = (self._clock(), most)
        return min(room, most)

    def _plans(self, conn: Connection, this: _Round, lane: Lane) -> None:
        room = this.fits(lane, engine=False)
        picked = dispatch.pick_plans(conn, lane, limit=room, suspects=self._options.suspects) if room else ()
        for job_id in picked:
            this.say(lane, PlanMessage(job_id=job_id, interactive=lane.interactive))
        if len(picked) == room:
            this.backlog.add(Wake.PLAN)

    def _documents(self, conn: Connection, this: _Round, lane: Lane, busy: Sequence[Busy]) -> None:
        share = loads(_of(busy, lane), engine=False)
        picked: list[Picked] = []
        for suspicion, most in self._suspicions(
            this, Wake.PAGINATE, suspects(busy, waiting="pending", leased="leased")
        ):
            limit = min(most, this.fits(lane, engine=False) - len(picked))
            if limit > 0:
                found = dispatch.pick_documents(conn, lane, limit=limit, loads=share, suspicion=suspicion)
                this.suspects[Wake.PAGINATE, suspicion.least] += len(found)
                picked += found
        room = this.fits(lane, engine=False) - len(picked)
        limit = room * self._options.group
        fresh = dispatch.pick_documents(conn, lane, limit=limit, loads=share) if limit > 0 else ()
        cut = grouped(fresh, room=self._messages(conn, room), most=self._options.group)
        groups = (*((row,) for row in picked), *cut)
        room = this.fits(lane, engine=False)
        for group in groups[:room]:
            docs = tuple(row.number for row in group)
            this.say(lane, PaginateMessage(job_id=group[0].job_id, docs=docs, interactive=lane.interactive))
        dispatch.unmark_documents(conn, [row for group in groups[room:] for row in group])
        if len(fresh) == limit or len(groups) > room:
            this.backlog.add(Wake.PAGINATE)

    def _prepares(self, conn: Connection, this: _Round, lane: Lane, busy: Sequence[Busy]) -> None:
        mine = _of(busy, lane)
        share = loads(mine, engine=False)
        throttle = self._throttles[lane.interactive]
        pace = None if lane.interactive else self.pace.rate(self._clock())
        allowed = throttle.allowance(mine, pace=pace)
        picked: list[Picked] = []
        for suspicion, most in self._suspicions(
            this, Wake.PREPARE, suspects(busy, waiting="pending", leased="preparing")
        ):
            limit = min(most, allowed, this.fits(lane, engine=False) - len(picked))
            if limit > 0:
                found = dispatch.pick_prepares(conn, lane, limit=limit, loads=share, suspicion=suspicion)
                this.suspects[Wake.PREPARE, suspicion.least] += len(found)
                picked += found
        room = this.fits(lane, engine=False) - len(picked)
        limit = min(room * self._options.group, allowed - len(picked))
        fresh = dispatch.pick_prepares(conn, lane, limit=limit, loads=share) if limit > 0 else ()
        cut = grouped(fresh, room=self._messages(conn, room), most=self._options.group)
        groups = (*((row,) for row in picked), *cut)
        room = this.fits(lane, engine=False)
        for group in groups[:room]:
            this.say(
                lane,
                PrepareMessage(
                    job_id=group[0].job_id,
                    seqs=tuple(row.number for row in group),
                    solo=group[0].losses > 1,
                    interactive=lane.interactive,
                ),
            )
        dispatch.unmark_items(conn, [row for group in groups[room:] for row in group])
        if allowed - len(picked) < room * self._options.group:
            this.held.add(Wake.PREPARE)
        elif len(fresh) == max(0, limit) or len(groups) > room:
            this.backlog.add(Wake.PREPARE)

    def _infers(self, conn: Connection, this: _Round, lane: Lane, busy: Sequence[Busy]) -> None:
        share = loads(_of(busy, lane), engine=True)
        picked: list[Picked] = []
        for suspicion, most in self._suspicions(this, Wake.INFER, suspects(busy, waiting="ready", leased="inferring")):
            limit = min(most, this.fits(lane, engine=True) - len(picked))
            if limit > 0:
                found = dispatch.pick_infers(conn, lane, limit=limit, loads=share, suspicion=suspicion)
                this.suspects[Wake.INFER, suspicion.least] += len(found)
                picked += found
        limit = this.fits(lane, engine=True) - len(picked)
        fresh = dispatch.pick_infers(conn, lane, limit=limit, loads=share) if limit > 0 else ()
        for row in (*picked, *fresh):
            solo = row.losses > 1
            message = InferMessage(job_id=row.job_id, seq=row.number, solo=solo, interactive=lane.interactive)
            this.say(lane, message, engine=True)
        if len(fresh) == max(0, limit):
            this.backlog.add(Wake.INFER)

    def _suspicions(self, this: _Round, stage: Wake, found: Suspects) -> list[tuple[Suspicion, int]]:
        """Which suspects may go now, and how many: a few of one loss together, of two losses one at a time."""
        allowed = []
        for suspicion, waiting, running, most in (
            (_TWICE, found.waiting_twice, found.running_twice, 1),
            (_ONCE, found.waiting_once, found.running_once, self._options.suspects),
        ):
            left = most - running - this.suspects[stage, suspicion.least]
            if waiting and left > 0:
                allowed.append((suspicion, left))
            if waiting > left:
                this.held.add(stage)
        return allowed


def _of(busy: Sequence[Busy], lane: Lane) -> list[Busy]:
    return [group for group in busy if group.interactive == lane.interactive]


def _queue(lane: Lane, *, engine: bool) -> QueueName:
    if engine:
        return QueueName.GPU_INTERACTIVE if lane.interactive else QueueName.GPU
    return QueueName.CPU_INTERACTIVE if lane.interactive else QueueName.CPU
