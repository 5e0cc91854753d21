"""The whole installation on one machine: servers, migrations, a tenant with a key, and the four kinds of processes.

A server whose address is set in the environment (`DATABASE_URL`, `REDIS_URL`, `S3_ENDPOINT_URL`) is used and not
started; so is a checkpoint (`MODEL`). Everything lies below one folder.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from pydantic import SecretStr

import migrations
from api.auth import SCOPES
from deploy.demo.random_checkpoint import write_random_checkpoint
from deploy.local.server import free_port
from deploy.local.servers import ObjectStore, Postgres, Redis
from deploy.local.supervisor import Program, Supervisor
from pipelines.jobs.errors import ConfigurationError, Unauthenticated
from pipelines.settings import Settings
from pipelines.store import tenants
from pipelines.store.session import Database

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUNDLED_CHECKPOINT = Path(__file__).parents[1] / "demo" / "checkpoint"
SAMPLES_BUCKET = "samples"
_HOPELESS = 2  # deaths before it was ready even once
_TAIL = 3_000

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """How much is started. `api_port` 0: a free one. `durable`: whether the servers survive a power cut.

    `samples`: whether tenants may read the bucket of samples on an S3 server that is not the embedded one.
    `modules`: what runs in place of a role's own module. `adapt`: given a program's name and the common environment,
    what this program gets on top of it. `most_deaths`: see `Supervisor`.
    """

    api_port: int = 0
    samples: bool = False
    durable: bool = True
    cpu_workers: int = 1
    cpu_processes: int = 2
    engine_workers: int = 1
    engine_slots: int = 8
    dispatchers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[str, Mapping[str, str]], Mapping[str, str]] = lambda _name, _environment: {}
    most_deaths: int = 8


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
        self._settings = Settings()
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

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def s3(self) -> S3Client:
        """A boto3 client of the S3 server in use."""
        if self.objects is not None:
            return self.objects.client()
        return boto3.client(
            "s3",
            endpoint_url=self.environment["S3_ENDPOINT_URL"],
            region_name=self._settings.s3_region,
            aws_access_key_id=self.environment.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=self.environment.get("AWS_SECRET_ACCESS_KEY"),
            config=Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required"),
        )

    def _start(self, timeout: float) -> Addresses:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.supervisor = Supervisor(self.folder / "logs", most_deaths=self.options.most_deaths)
        model, trained = self._model()
        self._start_servers(self.supervisor)
        self.environment |= {
            "MODEL": model,
            "BATCHSIGHT_SCRATCH_DIR": self._set("scratch_dir") or str(self.folder / "scratch"),
            "BATCHSIGHT_API_KEY_PEPPER": self._set("api_key_pepper") or self._secret("pepper"),
            "BATCHSIGHT_CPU_WORKERS": self._set("cpu_workers") or str(self.options.cpu_processes),
            "BATCHSIGHT_ENGINE_SLOTS": self._set("engine_slots") or str(self.options.engine_slots),
            "PYTHONUNBUFFERED": "1",
            "PYTHONSAFEPATH": "1",  # the modules are the installed ones, whatever lies in the working folder
            **self.options.environment,
        }
        self._say("applying migrations")
        migrations.upgrade(self.environment["DATABASE_URL"])
        key = self._bootstrap_key()
        port = self.options.api_port or free_port()
        self._start_programs(self.supervisor, port)
        self._wait(self.supervisor, timeout)
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
        if model := self._set("model"):
            return model, True
        if (BUNDLED_CHECKPOINT / "model.safetensors").is_file():
            config = json.loads((BUNDLED_CHECKPOINT / "config.json").read_text(encoding="utf-8"))
            return str(BUNDLED_CHECKPOINT), bool(config.get("batchsight", {}).get("trained", False))
        folder = self.folder / "model"
        if not (folder / "config.json").exists():
            self._say("writing a small checkpoint with random weights")
            write_random_checkpoint(folder, seed=0)
        return str(folder), False

    def _set(self, field: str) -> str:
        """What the environment or `.env` sets a field to; empty where nothing does."""
        if field not in self._settings.model_fields_set:
            return ""
        value = getattr(self._settings, field)
        return str(value.get_secret_value() if isinstance(value, SecretStr) else value or "")

    def _start_servers(self, supervisor: Supervisor) -> None:
        environment = self.environment
        durable = self.options.durable
        if url := self._set("database_url"):
            environment["DATABASE_URL"] = url
        else:
            self._say("starting PostgreSQL")
            self.postgres = Postgres(self.folder / "postgres", durable=durable)
            supervisor.serve(self.postgres)
            environment["DATABASE_URL"] = self.postgres.ensure_database("batchsight")
        if url := self._set("redis_url"):
            environment["REDIS_URL"] = url
        else:
            self._say("starting Redis")
            self.redis = Redis(self.folder / "redis", durable=durable)
            supervisor.serve(self.redis)
            environment["REDIS_URL"] = self.redis.url
        if url := self._set("s3_endpoint_url"):
            # The buckets and the keys are the environment's own.
            given = {
                "S3_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": self._set("s3_access_key_id"),
                "AWS_SECRET_ACCESS_KEY": self._set("s3_secret_access_key"),
            }
            environment |= {name: value for name, value in given.items() if value}
            if self.options.samples:
                environment["BATCHSIGHT_ALLOWED_BUCKETS"] = self._allowed_buckets()
            return
        self._say("starting S3")
        self.objects = ObjectStore(self.folder / "s3")
        supervisor.serve(self.objects)
        for bucket in ("batchsight", SAMPLES_BUCKET):
            self.objects.create_bucket(bucket)
        environment |= {
            "S3_ENDPOINT_URL": self.objects.endpoint,
            "AWS_ACCESS_KEY_ID": self.objects.access_key,
            "AWS_SECRET_ACCESS_KEY": self.objects.secret_key,
            "BATCHSIGHT_BLOB_URL": "s3://batchsight",
            "BATCHSIGHT_ALLOWED_BUCKETS": self._allowed_buckets(),
        }

    def _allowed_buckets(self) -> str:
        return ",".join(sorted({*self._settings.allowed_buckets, SAMPLES_BUCKET}))

    def _secret(self, name: str) -> str:
        path = self.folder / f"{name}.secret"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(32), encoding="utf-8")
        return path.read_text(encoding="utf-8")

    def _bootstrap_key(self) -> str:
        """A tenant and a key at the first start; the key is kept beside the data, readable by its owner alone."""
        path = self.folder / "api-key.secret"
        pepper = self.environment["BATCHSIGHT_API_KEY_PEPPER"]
        database = Database(self.environment["DATABASE_URL"], pool_size=1, application_name="batchsight bootstrap")
        try:
            with database.begin() as conn:
                if path.exists():
                    kept = path.read_text(encoding="utf-8")
                    with contextlib.suppress(Unauthenticated):  # kept from another database: a new one is made
                        tenants.authenticate(conn, kept, pepper=pepper)
                        return kept
                tenant = tenants.find_tenant(conn, "default") or tenants.create_tenant(conn, "default")
                key = tenants.create_key(conn, tenant.tenant_id, name="bootstrap", scopes=SCOPES, pepper=pepper)
        finally:
            database.close()
        path.touch(mode=0o600)
        path.write_text(key.secret, encoding="utf-8")
        return key.secret

    def _start_programs(self, supervisor: Supervisor, api_port: int) -> None:
        options = self.options
        roles = [("api", 1), ("dispatcher", options.dispatchers), ("cpu", options.cpu_workers)]
        roles.append(("gpu", options.engine_workers))
        self._say("starting api, dispatcher, cpu worker and engine worker")
        for role, count in roles:
            for number in range(count):
                name = role if count == 1 else f"{role}-{number + 1}"
                port = api_port if role == "api" else free_port()
                variable = "BATCHSIGHT_API_PORT" if role == "api" else "BATCHSIGHT_HEALTH_PORT"
                module = options.modules.get(role) or ("api" if role == "api" else f"workers.{role}")
                adapted = options.adapt(name, self.environment)
                self._health[name] = f"http://127.0.0.1:{port}/{'readyz' if role == 'api' else 'healthz'}"
                supervisor.start(
                    Program(
                        name=name,
                        command=(sys.executable, "-m", module),
                        environment={**self.environment, variable: str(port), **adapted},
                    )
                )
                self.programs.append(name)

    def _wait(self, supervisor: Supervisor, timeout: float) -> None:
        until = time.monotonic() + timeout
        waiting = dict(self._health)
        while waiting:
            if supervisor.gave_up:
                raise ConfigurationError(supervisor.gave_up)
            if time.monotonic() > until:
                names = ", ".join(waiting)
                raise ConfigurationError(f"not ready within {timeout:.0f} s: {names}; see {self.folder / 'logs'}")
            for name, url in list(waiting.items()):
                if _answers(url):
                    del waiting[name]
                elif supervisor.deaths(name) >= _HOPELESS:
                    log = supervisor.log(name)
                    tail = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:] if log.exists() else ""
                    raise ConfigurationError(f"{name} does not start; the end of {log}:\n{tail}")
            time.sleep(0.05)


def describe(addresses: Addresses) -> dict[str, Any]:
    """The addresses as plain values."""
    return asdict(addresses)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, never through a proxy
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
