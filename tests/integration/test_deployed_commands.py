"""Every command line of the compose file, the manifests and the images is run here, as far as it is ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis
import yaml

from deploy.local.server import guarded
from deploy.local.servers import Postgres, Redis
from workers.health import HealthServer

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRETS = {
    "POSTGRES_PASSWORD": "postgres",
    "REDIS_PASSWORD": "redis",
    "API_KEY_PEPPER": "p" * 40,
    "AWS_ACCESS_KEY_ID": "access",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "ALLOWED_BUCKETS": "media",
    "EXPORT_BUCKETS": "results",
}
SERVICES = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))["services"]


def interpolated(text: str) -> str:
    return re.sub(r"\$\{(\w+)[^}]*\}", lambda found: SECRETS[found[1]], text)


def commands() -> set[tuple[str, ...]]:
    found = {tuple(service["command"]) for service in SERVICES.values()}
    for service in SERVICES.values():
        found.add(tuple(service.get("healthcheck", {}).get("test", ["CMD"])[1:]))
    for path in (DEPLOY / "kubernetes").glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document["kind"] in {"Deployment", "Job"}:
                found |= {tuple(part["command"]) for part in document["spec"]["template"]["spec"]["containers"]}
    for path in (DEPLOY / "docker").glob("Dockerfile.*"):
        found |= {tuple(json.loads(line)) for line in re.findall(r"CMD (\[.*\])", path.read_text(encoding="utf-8"))}
    return {command for command in found if command[:1] == ("python",)}


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    path = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env={**path, **environment}, cwd="/"
    )


def module_of(command: tuple[str, ...]) -> str:
    assert command[:2] == ("python", "-m"), command
    return command[2]


def test_these_are_all_the_modules_that_are_deployed() -> None:
    assert {module_of(command) for command in commands()} == {
        "api",
        "workers.cpu",
        "workers.gpu",
        "workers.dispatcher",
        "workers.probe",
        "migrations",
    }


@pytest.mark.parametrize("name", ["api", "cpu", "gpu", "dispatcher"])
def test_a_deployed_process_starts_with_its_settings(name: str, tmp_path: Path) -> None:
    environment = {key: interpolated(value) for key, value in SERVICES[name]["environment"].items()}
    done = run(["-m", module_of(tuple(SERVICES[name]["command"])), "--check"], environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_the_migration_of_a_release_brings_an_empty_database_up(empty_database_url: str) -> None:
    done = run(list(SERVICES["migrate"]["command"][1:]), {"DATABASE_URL": empty_database_url})
    assert done.returncode == 0, done.stderr
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


def test_the_health_checks_tell_a_healthy_process_from_a_sick_one_and_a_dead_one() -> None:
    probes = [list(command) for command in commands() if module_of(command) == "workers.probe"]
    assert len(probes) == 2
    health = [True]
    server = HealthServer(0, lambda: health[0], host="127.0.0.1")
    try:
        for probe in probes:
            *flags, url = probe[1:]
            # The api answers at /readyz, which is tested with it; a worker's server knows /healthz.
            here = re.sub(r":\d+/\w+", f":{server.port}/healthz", url)
            assert run([*flags, here], {}).returncode == 0
            health[0] = False
            assert run([*flags, here], {}).returncode == 1
            health[0] = True
    finally:
        server.close()
    assert run([*flags, here], {}).returncode == 1
    assert run([*flags], {}).returncode == 2


def test_redis_understands_its_flags(tmp_path: Path) -> None:
    class Composed(Redis):
        """The embedded binary with the flags of the compose file."""

        def command(self) -> list[str]:
            binary = super().command()[0]
            flags = [interpolated(flag) for flag in SERVICES["redis"]["command"][1:]]
            return [binary, *flags, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]

        @property
        def url(self) -> str:
            return f"redis://:{SECRETS['REDIS_PASSWORD']}@127.0.0.1:{self.port}/0"

    with Composed(tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory") == {"maxmemory": str(1024**3)}


def test_postgres_understands_its_flags(postgres_server: Postgres) -> None:
    binary, data_flag, data, *_ = postgres_server.command()
    flags = [interpolated(flag) for flag in SERVICES["postgres"]["command"][1:]]
    options = dict(flag.split("=", 1) for flag in flags if "=" in flag)
    assert options
    for name, value in options.items():
        command = guarded(postgres_server.death_signal, postgres_server.drop(), [binary, data_flag, data, *flags])
        done = subprocess.run([*command, "-C", name], capture_output=True, text=True, check=False, cwd=data)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == {"1GB": "131072", "60s": "60000"}.get(value, value)
