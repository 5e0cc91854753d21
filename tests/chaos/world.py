"""The stack under test: real servers and processes, with faulty networks between them where a fault needs one."""

from __future__ import annotations

import os
import signal
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from api.auth import SCOPES
from api.client import Client
from api.client.retry import RetryPolicy
from deploy.local.stack import SAMPLES_BUCKET, Stack, StackOptions
from pipelines.settings import Settings
from pipelines.store import tenants
from pipelines.store.session import Database
from tests.chaos.proxy import PostgresProxy, S3Proxy
from tests.integration.store.guards import refuse_changes_of_terminal_rows
from workers.wiring import tile_size

LEASE = 4.0
SWEEP = 1.0
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
    "BATCHSIGHT_DISPATCH_WINDOW": "32",
    "BATCHSIGHT_READY_ITEMS": "32",  # so that there is something to prepare until the end
    "BATCHSIGHT_RATE_LIMIT_PER_MINUTE": "100000",
}
CLOCK_SKEW = 7_200.0
WORKERS = ("cpu-1", "cpu-2", "gpu-1", "gpu-2")
ROLES = ("api", "dispatcher-1", "dispatcher-2", *WORKERS)
_REPOSITORY = Path(__file__).resolve().parents[2]

# When a lease is lost, and when its item is claimed again: what recovery takes. `contact` is the last sign of life.
_RECOVERIES = """
CREATE TABLE chaos_recoveries (
    job_id uuid, seq bigint, losses int, contact timestamptz, lost timestamptz, claimed timestamptz,
    PRIMARY KEY (job_id, seq, losses)
);
CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.losses > OLD.losses AND OLD.lease_until IS NOT NULL THEN
        INSERT INTO chaos_recoveries VALUES (NEW.job_id, NEW.seq, NEW.losses,
            OLD.lease_until - make_interval(secs => {lease}), clock_timestamp(), NULL) ON CONFLICT DO NOTHING;
    ELSIF NEW.attempt > OLD.attempt AND NEW.losses > 0 THEN
        UPDATE chaos_recoveries SET claimed = clock_timestamp()
        WHERE job_id = NEW.job_id AND seq = NEW.seq AND losses = NEW.losses AND claimed IS NULL;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_note AFTER UPDATE ON items FOR EACH ROW
    WHEN (NEW.losses > OLD.losses OR NEW.attempt > OLD.attempt AND NEW.losses > 0) EXECUTE FUNCTION chaos_note();
"""


class World:
    """The stack, two tenants' clients, and direct connections of the harness. A context manager.

    `engine_seconds`: what one answer takes; long enough that work is left until the last fault.
    """

    def __init__(self, folder: Path, *, engine_seconds: float) -> None:
        self.s3 = S3Proxy()
        self.postgres = PostgresProxy()
        modules = {"cpu": "tests.chaos.cpu_worker", "gpu": "tests.chaos.engine_worker"}
        options = StackOptions(
            durable=False,
            cpu_workers=2,
            cpu_processes=2,
            engine_workers=2,
            engine_slots=8,
            dispatchers=2,
            environment={**SETTINGS, "CHAOS_ENGINE_SECONDS": str(engine_seconds)},
            modules=modules,
            adapt=self._adapt,
            most_deaths=1_000,
        )
        self.stack = Stack(folder, options, say=lambda _: None)
        self.scratch = folder.resolve() / "scratch-small"
        self.clients: list[Client] = []

    def __enter__(self) -> World:
        self.scratch.mkdir(parents=True)
        addresses = self.stack.start()
        self.database = Database(addresses.database_url, application_name="chaos")
        self.redis_url = addresses.redis_url
        refuse_changes_of_terminal_rows(self.database)
        with self.database.begin() as conn:
            conn.exec_driver_sql(_RECOVERIES.replace("{lease}", str(LEASE)))
            pepper = self.stack.environment["BATCHSIGHT_API_KEY_PEPPER"]
            tenant = tenants.create_tenant(conn, "second", weight=2.0)
            second = tenants.create_key(conn, tenant.tenant_id, name="chaos", scopes=SCOPES, pepper=pepper).secret
        patient = RetryPolicy(retries=40, cap=2.0)
        self.clients = [Client(addresses.api_url, api_key=key, retry=patient) for key in (addresses.api_key, second)]
        self.tile = tile_size(Settings(model=addresses.model, engine="fake"))
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        if self.stack.addresses is not None:
            self.database.close()
        self.stack.stop()
        self.s3.close()
        self.postgres.close()

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
        if pid:
            os.kill(pid, number)
        return bool(pid)

    def send_group(self, role: str, number: signal.Signals) -> bool:
        """Signal a role's process with its forked children."""
        pid = self.pid(role)
        if pid:
            os.killpg(pid, number)
        return bool(pid)

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
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{self.s3.port}",
            "PYTHONPATH": str(_REPOSITORY),
        }
        if name in {"cpu-1", "gpu-1"}:
            where = database.netloc.replace(f":{database.port}", f":{self.postgres.port}")
            own["DATABASE_URL"] = database._replace(netloc=where).geturl()
        if name == "cpu-1":
            own["BATCHSIGHT_SCRATCH_DIR"] = str(self.scratch)
        if name == "cpu-2":
            own["CHAOS_CLOCK_SKEW"] = str(CLOCK_SKEW)
        return own
