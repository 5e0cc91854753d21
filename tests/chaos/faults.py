"""Every fault, one method each. What was done is written to the fault log, with the time and what it hit.

`hit` counts what the fault really touched: leases, messages, requests, commits. A fault that touches nothing proves
nothing, so each waits for something to harm while work is left.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from pipelines.control.messages import InferMessage, Message, PlanMessage, PrepareMessage, QueueName
from pipelines.jobs.errors import BatchsightError
from tests.chaos import claims
from tests.chaos.proxy import S3Fault
from tests.chaos.world import LEASE, WORKERS, World
from workers.publish import Publisher

_DUPLICATES = 60
_PATIENCE = 60.0
_WORK_PATIENCE = 20.0


class Faults:
    """Does harm on request. Servers are restarted by the supervisor, as in the product."""

    def __init__(self, world: World, draw: random.Random, log: Path) -> None:
        self._world = world
        self._draw = draw
        self._log = log
        self._began = time.monotonic()
        self.done: list[dict[str, Any]] = []
        self.not_run: dict[str, str] = {}

    def once_each(self) -> list[Callable[[], None]]:
        """Every fault, in an order of the seed's choice."""
        faults = [self._bound(self.kill, role) for role in ("api", *WORKERS)]
        faults += [self._bound(self.s3, fault) for fault in S3Fault if fault is not S3Fault.NONE]
        faults += [self._bound(self.freeze, role) for role in ("cpu-1", "gpu-2")]
        faults += [
            self.kill_leaders,
            self.freeze_leader,
            self.kill_child,
            self.flush_redis,
            self.kill_redis,
            self.restart_postgres,
            self.repeat_messages,
            self.ambiguous_commits,
            self.fill_scratch,
            self.deploy,
        ]
        self._draw.shuffle(faults)
        return faults

    def kills(self) -> int:
        """How many processes were killed so far."""
        return sum(entry["fault"] in {"kill", "kill_child", "kill_redis", "restart_postgres"} for entry in self.done)

    def kill(self, role: str) -> None:
        """`kill -9`; the supervisor starts it again. `hit`: the leases that it held, 1 for who holds none."""
        while self._world.await_up(role):  # an item that kills its worker may be faster than the blow
            held = self._catch(role) if role in WORKERS else 1
            pid = self._world.pid(role)
            if self._world.send(role, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGCONT)  # its children go on until the supervisor finds them
                self._world.await_up(role, but=pid)
                self.note("kill", role=role, hit=held)
                return

    def kill_leaders(self) -> None:
        """`kill -9` of the dispatcher that leads, and then of the one that took over."""
        for _ in range(2):
            self.kill(self._leader())
            time.sleep(1.0)

    def freeze_leader(self) -> None:
        """SIGSTOP of the dispatcher that leads, until well past its lease. `hit`: another one leads by then."""
        role = self._leader()
        if self._world.send(role, signal.SIGSTOP):
            time.sleep(5.0)
            other = self._leader()
            self._world.send(role, signal.SIGCONT)
            self.note("freeze_leader", role=role, hit=int(other != role))

    def kill_child(self) -> None:
        """`kill -9` of one forked child of a cpu worker; its parent forks another."""
        role = self._draw.choice(["cpu-1", "cpu-2"])
        held = self._catch(role)
        parent = self._world.pid(role)
        children = _children(parent) if parent else []
        if children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._draw.choice(children), signal.SIGKILL)
            self.note("kill_child", role=role, hit=held)
        self._world.send_group(role, signal.SIGCONT)

    def freeze(self, role: str) -> None:
        """SIGSTOP past the lease, then SIGCONT: it comes back as a zombie. `hit`: the leases that it lost."""
        before = claims.lost(self._world.database, role)
        self._catch(role)
        time.sleep(LEASE + 3)
        self._world.send_group(role, signal.SIGCONT)
        self.note("freeze", role=role, hit=claims.lost(self._world.database, role) - before)

    def flush_redis(self) -> None:
        """FLUSHALL: every queue is gone. `hit`: the messages in them."""
        hit = self._await_messages()
        with redis.Redis.from_url(self._world.redis_url) as client, contextlib.suppress(redis.RedisError):
            client.flushall()
        self.note("flush_redis", hit=hit)

    def kill_redis(self) -> None:
        """`kill -9` of Redis, which keeps nothing. `hit`: the messages in its queues."""
        server = self._world.stack.redis
        hit = self._await_messages()
        if server is not None and server.pid:
            os.kill(server.pid, signal.SIGKILL)
            self.note("kill_redis", hit=hit)
            time.sleep(3.0)

    def restart_postgres(self) -> None:
        """Immediate shutdown, without a checkpoint; it recovers from its log. `hit`: sessions that were cut off."""
        server = self._world.stack.postgres
        if server is not None and server.pid:
            hit = self._sessions()
            os.kill(server.pid, signal.SIGQUIT)
            self.note("restart_postgres", hit=hit)
            time.sleep(3.0)

    def s3(self, fault: S3Fault) -> None:
        """Three seconds of a sick S3, for all workers. `hit`: requests or pieces of answers."""
        before = self._world.s3.hit
        self._world.s3.fault = fault
        self._until(lambda: self._world.s3.hit > before, least=3.0)
        self._world.s3.fault = S3Fault.NONE
        self.note(f"s3_{fault}", hit=self._world.s3.hit - before)

    def repeat_messages(self) -> None:
        """Messages for items in any state, published twice and in no order. `hit`: how many."""
        publisher = Publisher(self._world.redis_url)
        self._world.flooding.set()
        self._world.flooded.set()
        try:
            messages = self._some_messages() * 2
            self._draw.shuffle(messages)
            publisher.publish(messages)
            self.note("repeat_messages", hit=len(messages))
        except BatchsightError as error:
            self.note("repeat_messages", hit=0, error=error.message)
        finally:
            self._world.flooding.clear()
            publisher.close()

    def ambiguous_commits(self) -> None:
        """The next commits that pass the proxy are made, and their answers cut. `hit`: commits."""
        before = self._world.postgres.hit
        self._world.postgres.armed = 3
        self._until(lambda: self._world.postgres.hit > before, least=2.0)
        self._world.postgres.armed = 0
        self.note("ambiguous_commits", hit=self._world.postgres.hit - before)

    def fill_scratch(self) -> None:
        """The small disk under the scratch folder of one cpu worker is full. `hit`: its waits and its retries."""
        if not self._world.small_disk:
            self.not_run["fill_scratch"] = "mounting a small disk needs root"
            return
        self._await_work("cpu-1")
        before = self._refused_for_space()
        ballast = self._world.scratch / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                _fill(file.fileno())
            self._until(lambda: self._refused_for_space() > before, least=3.0)
        finally:
            ballast.unlink(missing_ok=True)
        self.note("fill_scratch", hit=self._refused_for_space() - before)

    def deploy(self) -> None:
        """SIGTERM to every role, one after the other, each awaited. `hit`: the leases that it had."""
        for role in ("dispatcher-1", "dispatcher-2", "api", *WORKERS):
            self._world.await_up(role)
            held = claims.held(self._world.database, role) if role in WORKERS else 1
            pid = self._world.pid(role)
            if self._world.send(role, signal.SIGTERM):
                self._world.await_up(role, but=pid, timeout=30.0)
                self.note("sigterm", role=role, hit=held)

    def note(self, fault: str, **about: Any) -> None:
        """Write down what was done, here or by somebody else."""
        entry = {"at": round(time.monotonic() - self._began, 2), "fault": fault, **about}
        self.done.append(entry)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    def _refused_for_space(self) -> int:
        waits = self._world.logs.joinpath("cpu-1.log").read_text(encoding="utf-8", errors="replace")
        return waits.count("scratch_is_full") + claims.retried(self._world.database, "scratch_full")

    def _some_messages(self) -> list[Message]:
        with self._world.database.begin() as conn:
            rows = conn.exec_driver_sql(
                "SELECT job_id, seq FROM items ORDER BY md5(seq::text || job_id::text || random()::text) LIMIT %s",
                (_DUPLICATES,),
            ).all()
            found = [uuid.UUID(str(row.id)) for row in conn.exec_driver_sql("SELECT id FROM jobs").all()]
        messages: list[Message] = [PlanMessage(job_id=job, interactive=False) for job in found]
        for row in rows:
            messages.append(PrepareMessage(job_id=row.job_id, seqs=(row.seq,), solo=False, interactive=False))
            messages.append(InferMessage(job_id=row.job_id, seq=row.seq, solo=False, interactive=False))
        return messages

    def _leader(self) -> str:
        """The dispatcher that leads; the first while nobody can tell."""
        with contextlib.suppress(BatchsightError), self._world.database.begin() as conn:
            holder = str(conn.exec_driver_sql("SELECT holder FROM leader").scalar())
            if holder.endswith(f":{self._world.pid('dispatcher-2')}"):
                return "dispatcher-2"
        return "dispatcher-1"

    def _sessions(self) -> int:
        with contextlib.suppress(BatchsightError), self._world.database.begin() as conn:
            sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s"
            return int(conn.exec_driver_sql(sessions, ("%@%",)).scalar_one())
        return 0

    def _await_work(self, role: str) -> int:
        """Wait while a role holds nothing, unless no work is left; the leases that it holds."""
        return self._until(lambda: claims.held(self._world.database, role))

    def _await_messages(self) -> int:
        """Wait while the queues are empty, unless no work is left; the messages in them."""

        def waiting() -> int:
            with redis.Redis.from_url(self._world.redis_url) as client, contextlib.suppress(redis.RedisError):
                return sum(int(client.llen(name)) for name in QueueName)
            return 0

        return self._until(waiting)

    def _catch(self, role: str) -> int:
        """Stop a worker while it holds work, but nothing that has lost two workers; the leases that it holds.

        The third loss would end an item by design, innocent as it may be. A stopped worker claims nothing between the
        look and the blow.
        """
        until = time.monotonic() + _PATIENCE
        while True:
            self._await_work(role)
            self._world.send_group(role, signal.SIGSTOP)
            time.sleep(0.1)  # a commit that was on its way has arrived
            if not claims.lost_twice(self._world.database, role) or time.monotonic() > until:
                return claims.held(self._world.database, role)
            self._world.send_group(role, signal.SIGCONT)
            time.sleep(0.3)

    def _until(self, found: Callable[[], int], *, least: float = 0.0, most: float = _WORK_PATIENCE) -> int:
        """Wait `least` seconds and on until something was found, `most` seconds at most; what it was."""
        began = time.monotonic()
        while True:
            value, waited = found(), time.monotonic() - began
            if waited >= most or (value and waited >= least):
                return value
            time.sleep(0.05)

    @staticmethod
    def _bound(call: Callable[[Any], None], argument: Any) -> Callable[[], None]:
        return lambda: call(argument)


def _fill(descriptor: int) -> None:
    """Write until nothing more fits: large pieces first, then small ones into the last gap."""
    for size in (1 << 20, 1 << 12):
        try:
            while True:
                os.write(descriptor, b"\0" * size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
