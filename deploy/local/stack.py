"""The whole installation on one machine: servers, migrations, a tenant with a key, and the four kinds of processes.

A server whose address is set in the environment (`DATABASE_URL`, `REDIS_URL`, `S3_ENDPOINT_URL`) is used and not
started; so is a checkpoint (`MODEL`). Everything lies below one folder.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import migrations
from deploy.demo.random_checkpoint import write_random_checkpoint
from deploy.local.server import Server, free_port
from deploy.local.servers import ObjectStore, Postgres, Redis
from deploy.local.supervisor import Program, Supervisor
from pipelines.jobs.errors import ConfigurationError
from pipelines.store import tenants
from pipelines.store.session import Database

BUNDLED_CHECKPOINT = Path(__file__).parents[1] / "demo" / "checkpoint"
SAMPLES_BUCKET = "samples"
SCOPES = ("jobs:read", "jobs:write", "files:read", "files:write", "admin")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """How much is started. `api_port` 0: a free one. `durable`: whether the servers survive a power cut."""

    api_port: int = 0
    durable: bool = True
    cpu_workers: int = 1
    cpu_processes: int = 2
    engine_workers: int = 1
    engine_slots: int = 8
    dispatchers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where everything is. `trained` is False where the model's weights are random."""

    folder: str
    api_url: str
    api_key: str
    database_url: str
    redis_url: str
    s3_endpoint_url: str
    s3_access_key_id: str
    s3_secret_access_key: str
    model: str
    trained: bool


class Stack:
    """Start, stop; a context manager. `programs` names the supervised processes, for those who kill them on purpose."""

    def __init__(self, folder: Path, options: StackOptions | None = None, *, say: Say = print) -> None:
        self.folder = folder.resolve()
        self.options = options or StackOptions()
        self._say = say
        self._servers: list[Server] = []
        self.postgres: Postgres | None = None
        self.redis: Redis | None = None
        self.objects: ObjectStore | None = None
        self.supervisor: Supervisor | None = None
        self.programs: list[str] = []
        self._health: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        self.addresses: Addresses | None = None

    def start(self, *, timeout: float = 120.0) -> Addresses:
        """Bring everything up and wait until it answers. Raises `ConfigurationError`, with nothing left running."""
        try:
            return self._start(timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop processes, then servers. Repeatable."""
        if self.supervisor is not None:
            self.supervisor.stop()
            self.supervisor = None
        while self._servers:
            self._servers.pop().stop()

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def s3(self) -> Any:
        """A boto3 client of the embedded S3 server."""
        if self.objects is None:
            raise ConfigurationError("S3 is not the embedded one")
        return self.objects.client()

    def _start(self, timeout: float) -> Addresses:
        self.folder.mkdir(parents=True, exist_ok=True)
        model, trained = self._model()
        self._start_servers()
        self.environment |= {
            "MODEL": model,
            "BATCHSIGHT_SCRATCH_DIR": str(self.folder / "scratch"),
            "BATCHSIGHT_API_KEY_PEPPER": self._secret("pepper"),
            "BATCHSIGHT_CPU_WORKERS": str(self.options.cpu_processes),
            "BATCHSIGHT_ENGINE_SLOTS": str(self.options.engine_slots),
            "PYTHONUNBUFFERED": "1",
            **self.options.environment,
        }
        self._say("applying migrations")
        migrations.upgrade(self.environment["DATABASE_URL"])
        key = self._bootstrap_key()
        port = self.options.api_port or free_port()
        self._start_programs(port)
        self._wait(timeout)
        self.addresses = Addresses(
            folder=str(self.folder),
            api_url=f"http://127.0.0.1:{port}",
            api_key=key,
            database_url=self.environment["DATABASE_URL"],
            redis_url=self.environment["REDIS_URL"],
            s3_endpoint_url=self.environment.get("S3_ENDPOINT_URL", ""),
            s3_access_key_id=self.environment.get("AWS_ACCESS_KEY_ID", ""),
            s3_secret_access_key=self.environment.get("AWS_SECRET_ACCESS_KEY", ""),
            model=model,
            trained=trained,
        )
        return self.addresses

    def _model(self) -> tuple[str, bool]:
        if model := os.environ.get("BATCHSIGHT_MODEL") or os.environ.get("MODEL"):
            return model, True
        if (BUNDLED_CHECKPOINT / "model.safetensors").is_file():
            config = json.loads((BUNDLED_CHECKPOINT / "config.json").read_text(encoding="utf-8"))
            return str(BUNDLED_CHECKPOINT), bool(config.get("batchsight", {}).get("trained", False))
        folder = self.folder / "model"
        if not (folder / "config.json").exists():
            self._say("writing a small checkpoint with random weights")
            write_random_checkpoint(folder, seed=0)
        return str(folder), False

    def _start_servers(self) -> None:
        environment = self.environment
        durable = self.options.durable
        if url := os.environ.get("BATCHSIGHT_DATABASE_URL") or os.environ.get("DATABASE_URL"):
            environment["DATABASE_URL"] = url
        else:
            self._say("starting PostgreSQL")
            self.postgres = Postgres(self.folder / "postgres", durable=durable)
            self._up(self.postgres)
            environment["DATABASE_URL"] = self.postgres.ensure_database("batchsight")
        if url := os.environ.get("BATCHSIGHT_REDIS_URL") or os.environ.get("REDIS_URL"):
            environment["REDIS_URL"] = url
        else:
            self._say("starting Redis")
            self.redis = Redis(self.folder / "redis", durable=durable)
            self._up(self.redis)
            environment["REDIS_URL"] = self.redis.url
        if os.environ.get("BATCHSIGHT_S3_ENDPOINT_URL") or os.environ.get("S3_ENDPOINT_URL"):
            return  # the bucket, the keys and the allowed buckets are the environment's own
        self._say("starting S3")
        self.objects = ObjectStore(self.folder / "s3")
        self._up(self.objects)
        for bucket in ("batchsight", SAMPLES_BUCKET):
            self.objects.create_bucket(bucket)
        environment |= {
            "S3_ENDPOINT_URL": self.objects.endpoint,
            "AWS_ACCESS_KEY_ID": self.objects.access_key,
            "AWS_SECRET_ACCESS_KEY": self.objects.secret_key,
            "BATCHSIGHT_BLOB_URL": "s3://batchsight",
            "BATCHSIGHT_ALLOWED_BUCKETS": SAMPLES_BUCKET,
        }

    def _up(self, server: Server) -> None:
        self._servers.append(server)
        server.start()

    def _secret(self, name: str) -> str:
        path = self.folder / f"{name}.secret"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(32), encoding="utf-8")
        return path.read_text(encoding="utf-8")

    def _bootstrap_key(self) -> str:
        """A tenant and a key at the first start; the key is kept beside the data, readable by its owner alone."""
        path = self.folder / "api-key.secret"
        if path.exists():
            return path.read_text(encoding="utf-8")
        database = Database(self.environment["DATABASE_URL"], pool_size=1, application_name="batchsight bootstrap")
        try:
            with database.begin() as conn:
                tenant = tenants.find_tenant(conn, "default") or tenants.create_tenant(conn, "default")
                key = tenants.create_key(
                    conn,
                    tenant.tenant_id,
                    name="bootstrap",
                    scopes=SCOPES,
                    expires_at=None,
                    pepper=self.environment["BATCHSIGHT_API_KEY_PEPPER"],
                )
        finally:
            database.close()
        path.touch(mode=0o600)
        path.write_text(key.secret, encoding="utf-8")
        return key.secret

    def _start_programs(self, api_port: int) -> None:
        self.supervisor = Supervisor(self.folder / "logs")
        options = self.options
        roles = [("api", 1), ("dispatcher", options.dispatchers), ("cpu", options.cpu_workers)]
        roles.append(("gpu", options.engine_workers))
        self._say("starting api, dispatcher, cpu worker and engine worker")
        for role, count in roles:
            for number in range(count):
                name = role if count == 1 else f"{role}-{number + 1}"
                port = api_port if role == "api" else free_port()
                variable = "BATCHSIGHT_API_PORT" if role == "api" else "BATCHSIGHT_HEALTH_PORT"
                module = "api" if role == "api" else f"workers.{role}"
                self._health[name] = f"http://127.0.0.1:{port}/{'readyz' if role == 'api' else 'healthz'}"
                self.supervisor.start(
                    Program(
                        name=name,
                        command=(sys.executable, "-m", module),
                        environment={**self.environment, variable: str(port)},
                    )
                )
                self.programs.append(name)

    def _wait(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        waiting = dict(self._health)
        while waiting:
            if self.supervisor is not None and self.supervisor.gave_up:
                raise ConfigurationError(self.supervisor.gave_up)
            if time.monotonic() > until:
                names = ", ".join(waiting)
                raise ConfigurationError(f"not ready within {timeout:.0f} s: {names}; see {self.folder / 'logs'}")
            for name, url in list(waiting.items()):
                if _answers(url):
                    del waiting[name]
            time.sleep(0.05)


def describe(addresses: Addresses) -> dict[str, Any]:
    """The addresses as plain values."""
    return asdict(addresses)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own loopback address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
