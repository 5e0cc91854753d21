"""Every fault, one method each. What was done is written to the fault log, with the time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from pipelines.control.messages import InferMessage, Message, PlanMessage, PrepareMessage
from pipelines.jobs.errors import BatchsightError
from tests.chaos.proxy import S3Fault
from tests.chaos.world import LEASE, WORKERS, World
from workers.publish import Publisher

_SMALL_DISK = "2m"
_DUPLICATES = 60
_PATIENCE = 60.0


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
        roles = ("cpu-1", "gpu-1", "cpu-2", "gpu-2", "api")
        faults = [self._bound(self.kill, role) for role in roles]
        faults += [self._bound(self.s3, fault) for fault in S3Fault if fault is not S3Fault.NONE]
        faults += [
            self.kill_leader,
            self.kill_child,
            self._bound(self.freeze, "gpu-2"),
            self._bound(self.freeze, "cpu-1"),
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
        """`kill -9`; the supervisor starts it again."""
        self._spare()
        pid = self._world.pid(role)
        if self._world.send(role, signal.SIGKILL):
            self._note("kill", role=role)
            self._world.await_up(role, but=pid)

    def kill_leader(self) -> None:
        """`kill -9` of whichever dispatcher leads (both, one after the other: one of them does)."""
        self.kill("dispatcher-1")
        self._wait(1.0)
        self.kill("dispatcher-2")

    def kill_child(self) -> None:
        """`kill -9` of one forked child of a cpu worker; its parent forks another."""
        self._spare()
        parent = self._world.pid(self._draw.choice(["cpu-1", "cpu-2"]))
        children = _children(parent) if parent else []
        if children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._draw.choice(children), signal.SIGKILL)
            self._note("kill_child")

    def freeze(self, role: str) -> None:
        """SIGSTOP past the lease, then SIGCONT: it comes back as a zombie."""
        self._spare()
        if self._world.send_group(role, signal.SIGSTOP):
            self._note("freeze", role=role, seconds=LEASE + 3)
            self._wait(LEASE + 3)
            self._world.send_group(role, signal.SIGCONT)

    def flush_redis(self) -> None:
        """FLUSHALL: every queue is gone."""
        self._note("flush_redis")
        with redis.Redis.from_url(self._world.redis_url) as client, contextlib.suppress(redis.RedisError):
            client.flushall()

    def kill_redis(self) -> None:
        """`kill -9` of Redis; it comes back with what it had written, if anything."""
        server = self._world.stack.redis
        if server is not None and server.pid:
            self._note("kill_redis")
            os.kill(server.pid, signal.SIGKILL)
            self._wait(3.0)

    def restart_postgres(self) -> None:
        """Immediate shutdown, without a checkpoint; it recovers from its log."""
        server = self._world.stack.postgres
        if server is not None and server.pid:
            self._note("restart_postgres")
            os.kill(server.pid, signal.SIGQUIT)
            self._wait(3.0)

    def s3(self, fault: S3Fault) -> None:
        """Three seconds of a sick S3, for all workers."""
        before = self._world.s3.hit
        self._world.s3.fault = fault
        self._wait(3.0)
        self._world.s3.fault = S3Fault.NONE
        self._note(f"s3_{fault}", hit=self._world.s3.hit - before)

    def repeat_messages(self) -> None:
        """Messages for items in any state, published twice and in no order."""
        publisher = Publisher(self._world.redis_url)
        try:
            messages = self._some_messages() * 2
            self._draw.shuffle(messages)
            publisher.publish(messages)
            self._note("repeat_messages", messages=len(messages))
        except BatchsightError as error:
            self._note("repeat_messages", messages=0, error=error.message)
        finally:
            publisher.close()

    def ambiguous_commits(self) -> None:
        """The next commits that pass the proxy are made, and their answers cut."""
        before = self._world.postgres.hit
        self._world.postgres.armed = 3
        self._wait(2.0)
        self._world.postgres.armed = 0
        self._note("ambiguous_commits", hit=self._world.postgres.hit - before)

    def fill_scratch(self) -> None:
        """The scratch folder of one cpu worker lies on a small disk, and that is full."""
        scratch = self._world.scratch
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "tmpfs", str(scratch)]
        try:
            mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True, check=False).returncode
        except FileNotFoundError:
            mounted = False
        if not mounted:
            self.not_run["fill_scratch"] = "mounting a small disk needs root"
            return
        try:
            with contextlib.suppress(OSError), scratch.joinpath("ballast").open("wb", buffering=0) as ballast:
                while True:
                    ballast.write(b"\0" * 4096)
            self._wait(3.0)
            self._note("fill_scratch", seconds=3.0)
        finally:
            subprocess.run(["umount", "-l", str(scratch)], capture_output=True, check=False)

    def deploy(self) -> None:
        """SIGTERM to every role, one after the other, each awaited."""
        for role in ("dispatcher-1", "dispatcher-2", "api", *WORKERS):
            pid = self._world.pid(role)
            if self._world.send(role, signal.SIGTERM):
                self._note("sigterm", role=role)
                self._world.await_up(role, but=pid, timeout=30.0)

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

    def _spare(self) -> None:
        """Wait while an item has lost two workers: the third loss would end it, by design, innocent as it may be."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(BatchsightError), self._world.database.begin() as conn:
                twice = "SELECT count(*) FROM items WHERE losses >= 2 AND finished_at IS NULL"
                if not conn.exec_driver_sql(twice).scalar_one():
                    return
            time.sleep(0.1)

    def _wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def note(self, fault: str, **about: Any) -> None:
        """Write what somebody else did."""
        self._note(fault, **about)

    def _note(self, fault: str, **about: Any) -> None:
        entry = {"at": round(time.monotonic() - self._began, 2), "fault": fault, **about}
        self.done.append(entry)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    @staticmethod
    def _bound(call: Callable[[Any], None], argument: Any) -> Callable[[], None]:
        return lambda: call(argument)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
