from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psycopg
import pytest
import redis
from botocore.exceptions import ClientError

from deploy.local.server import Server, guarded, port_is_free
from deploy.local.servers import ObjectStore, Postgres, Redis

OWNER = """
import sys, time
from pathlib import Path
from deploy.local.servers import ObjectStore, Postgres, Redis
folder = Path(sys.argv[1])
servers = [Postgres(folder / "postgres", durable=False), Redis(folder / "redis"), ObjectStore(folder / "s3")]
print(*[server.start().pid for server in servers], flush=True)
time.sleep(300)
"""


def alive(pid: int) -> bool:
    """Running; a zombie that nobody has collected counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int]) -> bool:
    for _ in range(1000):
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_a_killed_postgres_comes_back_on_its_port_with_what_was_committed(tmp_path: Path) -> None:
    with Postgres(tmp_path / "postgres") as server:
        url = server.ensure_database("kept")
        assert server.ensure_database("kept") == url
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("CREATE TABLE numbers AS SELECT 17 AS number")
        server.kill()
        assert not server.pid
        server.start()
        with psycopg.connect(url) as conn:
            assert conn.execute("SELECT number FROM numbers").fetchone() == (17,)
        server.immediate()
        server.start()
        with psycopg.connect(url) as conn:
            assert conn.execute("SELECT number FROM numbers").fetchone() == (17,)


def test_even_a_postgres_for_tests_keeps_what_it_acknowledged_a_moment_before_it_crashed(tmp_path: Path) -> None:
    with Postgres(tmp_path / "postgres", durable=False) as server:
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("CREATE TABLE kept AS SELECT 0 AS number")
            for number in range(1, 200):
                conn.execute("INSERT INTO kept VALUES (%s)", (number,))
            server.immediate()
        server.start()
        with psycopg.connect(server.url) as conn:
            assert conn.execute("SELECT max(number) FROM kept").fetchone() == (199,)


def test_postgres_never_runs_as_root_and_refuses_a_wrong_password(postgres_server: Postgres) -> None:
    owner = Path(f"/proc/{postgres_server.pid}").stat().st_uid
    assert owner != 0
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_server.url.replace(postgres_server.password, "wrong"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives up root")
def test_who_gave_up_root_still_finds_programs_in_a_folder_closed_to_all_others(tmp_path: Path) -> None:
    program = tmp_path / "closed" / "program"
    program.parent.mkdir(mode=0o700)
    program.touch(mode=0o755)
    asks = [sys.executable, "-I", "-S", "-c", f"import os; print(os.geteuid(), os.access({str(program)!r}, os.R_OK))"]
    command = guarded(signal.SIGKILL, ("--drop", "65534"), asks)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "65534 True\n"


def test_a_durable_redis_keeps_its_queue_over_kill_and_restart(tmp_path: Path) -> None:
    with Redis(tmp_path / "redis") as server:
        with redis.Redis.from_url(server.url) as client:
            client.rpush("queue", "one", "two")
        server.kill()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.lrange("queue", 0, -1) == [b"one", b"two"]
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_redis_asks_for_its_password(redis_server: Redis) -> None:
    with redis.Redis(port=redis_server.port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_s3_shows_a_fresh_object_at_once_and_refuses_foreign_keys(
    object_store_server: ObjectStore, bucket: str
) -> None:
    client = object_store_server.client()
    client.put_object(Bucket=bucket, Key="a/b.txt", Body=b"text")
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix="a/")["Contents"]] == ["a/b.txt"]
    stranger = ObjectStore(object_store_server.folder)
    stranger.port = object_store_server.port
    with pytest.raises(ClientError):
        stranger.client().get_object(Bucket=bucket, Key="a/b.txt")
    with pytest.raises(urllib.request.HTTPError):
        urllib.request.urlopen(f"{object_store_server.endpoint}/{bucket}/a/b.txt")


def test_every_server_listens_on_loopback_alone(
    postgres_server: Postgres, redis_server: Redis, object_store_server: ObjectStore
) -> None:
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    servers: list[Server] = [postgres_server, redis_server, object_store_server]
    for server in servers:
        rows = [row.split() for row in listening.splitlines() if f":{server.port:04X} " in row]
        addresses = {row[1].split(":")[0] for row in rows if row[3] == "0A"}
        assert addresses == {"0100007F"}, server.name


def test_a_server_whose_port_was_taken_meanwhile_moves_to_another(tmp_path: Path) -> None:
    with Redis(tmp_path / "redis", durable=False) as server:
        server.stop()
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.bind(("127.0.0.1", server.port))
            thief.listen()
            assert not port_is_free(server.port)
            server.start()
            assert server.port != thief.getsockname()[1]
            assert server.answers()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_its_owner(tmp_path: Path, number: signal.Signals) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    os.kill(owner.pid, number)
    owner.wait(20)
    assert gone(pids)
