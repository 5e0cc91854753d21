"""The stack under test: real servers and processes, with faulty networks between them where a fault needs one."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from api.auth import SCOPES
from api.client import Client
from api.client.retry import RetryPolicy
from deploy.demo.random_checkpoint import write_random_checkpoint
from deploy.local.stack import SAMPLES_BUCKET, Stack, StackOptions
from pipelines.store import tenants
from pipelines.store.session import Database
from tests.chaos import claims
from tests.chaos.answers import DTYPE
from tests.chaos.proxy import PostgresProxy, S3Proxy
from tests.integration.store.guards import refuse_changes_of_terminal_rows

LEASE = 4.0
SWEEP = 1.0
WINDOW = 32
READY_BYTES = 16 * 1024
SLOTS = {"cpu-1": 2, "cpu-2": 2, "gpu-1": 8, "gpu-2": 8, "gpu-3": 2}
"""What a worker does at the same time. `gpu-3` runs the real engine."""
GROUP = 8
"""Items of one message to a cpu worker: so many leases does each of its processes hold."""
SETTINGS = {
    "BATCHSIGHT_ENGINE": "fake",
    "BATCHSIGHT_LEASE_SECONDS": str(LEASE),
    "BATCHSIGHT_HEARTBEAT_SECONDS": "1",
    "BATCHSIGHT_SWEEP_SECONDS": str(SWEEP),
    "BATCHSIGHT_REDISPATCH_SECONDS": "5",
    "BATCHSIGHT_LEADER_LEASE_SECONDS": "2",
    "BATCHSIGHT_DECODE_WALL_SECONDS": "5",
    "BATCHSIGHT_DECODE_MEMORY_BYTES": str(700 * 1024 * 1024),
    "BATCHSIGHT_DRAIN_SECONDS": "3",
    "BATCHSIGHT_DISPATCH_WINDOW": str(WINDOW),
    "BATCHSIGHT_READY_ITEMS": "32",  # so that there is something to prepare until the end
    "BATCHSIGHT_READY_BYTES": str(READY_BYTES),
    "BATCHSIGHT_SCRATCH_RESERVE_BYTES": str(8 * 1024 * 1024),
    "BATCHSIGHT_RATE_LIMIT_PER_MINUTE": "100000",
}
CLOCK_SKEW = 7_200.0
WORKERS = tuple(SLOTS)
ROLES = ("api", "dispatcher-1", "dispatcher-2", *WORKERS)
SMALL_DISK = "64m"
_REPOSITORY = Path(__file__).resolve().parents[2]


class World:
    """The stack, two tenants' clients, and direct connections of the harness. A context manager.

    `engine_seconds`: what one answer takes; long enough that work is left until the last fault.
    """

    def __init__(self, folder: Path, *, engine_seconds: float) -> None:
        self.s3 = S3Proxy()
        self.postgres = PostgresProxy()
        folder = folder.resolve()
        self.checkpoint = folder / "checkpoint"
        self.tile = write_random_checkpoint(self.checkpoint, seed=0).image_size
        modules = {"cpu": "tests.chaos.cpu_worker", "gpu": "tests.chaos.engine_worker"}
        own = {"CHAOS_ENGINE_SECONDS": str(engine_seconds), "MODEL": str(self.checkpoint)}
        options = StackOptions(
            durable=False,
            cpu_workers=2,
            cpu_processes=SLOTS["cpu-1"],
            engine_workers=3,
            engine_slots=SLOTS["gpu-1"],
            dispatchers=2,
            environment={**SETTINGS, **own},
            modules=modules,
            adapt=self._adapt,
            most_deaths=1_000,
        )
        self.stack = Stack(folder, options, say=lambda _: None)
        self.scratch = folder / "scratch-small"
        self.small_disk = False
        self.flooding = threading.Event()  # the harness itself puts messages into the queues
        self.flooded = threading.Event()  # and they are not yet taken
        self.clients: list[Client] = []
        self._opened = ExitStack()

    def __enter__(self) -> World:
        with ExitStack() as opened:
            opened.callback(self.postgres.close)
            opened.callback(self.s3.close)
            opened.callback(self._unmount)
            self._mount()
            opened.callback(self.stack.stop)
            addresses = self.stack.start()
            self.database = Database(addresses.database_url, application_name="chaos")
            opened.callback(self.database.close)
            self.redis_url = addresses.redis_url
            refuse_changes_of_terminal_rows(self.database)
            claims.install(self.database, lease=LEASE)
            pepper = self.stack.environment["BATCHSIGHT_API_KEY_PEPPER"]
            with self.database.begin() as conn:
                tenant = tenants.create_tenant(conn, "second", weight=2.0)
                second = tenants.create_key(conn, tenant.tenant_id, name="chaos", scopes=SCOPES, pepper=pepper).secret
            patient = RetryPolicy(retries=40, cap=2.0)
            for key in (addresses.api_key, second):
                self.clients.append(Client(addresses.api_url, api_key=key, retry=patient))
                opened.callback(self.clients[-1].close)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def bucket(self) -> Path:
        """The folder that S3 serves as the bucket of samples."""
        return self.stack.folder / "s3" / "buckets" / SAMPLES_BUCKET

    @property
    def logs(self) -> Path:
        """What the processes wrote."""
        return self.stack.folder / "logs"

    def pid(self, role: str) -> int:
        """The process of a role; 0 while it is down."""
        return self.stack.supervisor.pid(role) if self.stack.supervisor is not None else 0

    def send(self, role: str, number: signal.Signals) -> bool:
        """Signal a role's process alone. False where it was down anyway."""
        pid = self.pid(role)
        with suppress(ProcessLookupError):  # it died just now
            if pid:
                os.kill(pid, number)
                return True
        return False

    def send_group(self, role: str, number: signal.Signals) -> bool:
        """Signal a role's process with its forked children."""
        pid = self.pid(role)
        with suppress(ProcessLookupError):
            if pid:
                os.killpg(pid, number)
                return True
        return False

    def await_up(self, role: str, *, but: int = 0, timeout: float = 60.0) -> bool:
        """Wait for a (new) process of the role."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self.pid(role) not in {0, but}:
                return True
            time.sleep(0.05)
        return False

    def _adapt(self, name: str, environment: Mapping[str, str]) -> Mapping[str, str]:
        """Workers reach S3 through the faulty network, one of each role PostgreSQL too; one has a wrong clock."""
        if name not in WORKERS:
            return {}
        self.s3.upstream = urllib.parse.urlsplit(environment["S3_ENDPOINT_URL"]).port or 0
        database = urllib.parse.urlsplit(environment["DATABASE_URL"])
        self.postgres.upstream = database.port or 0
        own = {
            "CHAOS_ROLE": name,
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{self.s3.port}",
            "PYTHONPATH": str(_REPOSITORY),
        }
        if name in {"cpu-1", "gpu-1"}:
            where = database.netloc.replace(f":{database.port}", f":{self.postgres.port}")
            own["DATABASE_URL"] = database._replace(netloc=where).geturl()
        if name == "cpu-1":
            own["BATCHSIGHT_SCRATCH_DIR"] = str(self.scratch)
        if name == "cpu-2":
            own |= {"CHAOS_CLOCK_SKEW": str(CLOCK_SKEW), "BATCHSIGHT_INLINE_PACK_BYTES": "0"}  # its packs lie in S3
        if name == "gpu-3":
            own |= {
                "BATCHSIGHT_ENGINE": "local",
                "BATCHSIGHT_ENGINE_DTYPE": DTYPE,
                "BATCHSIGHT_ENGINE_SLOTS": str(SLOTS[name]),
                "BATCHSIGHT_ENGINE_THREADS": "1",
            }
        return own

    def _mount(self) -> None:
        """A disk that can be filled under one cpu worker's scratch folder: root alone can have one."""
        self.scratch.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(self.scratch)]
        try:
            done = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            done = False
        self.small_disk = done

    def _unmount(self) -> None:
        if self.small_disk:
            subprocess.run(["umount", "-l", str(self.scratch)], capture_output=True, check=False)
