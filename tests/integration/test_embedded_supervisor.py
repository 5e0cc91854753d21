from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.servers import Redis
from deploy.local.supervisor import Program, Supervisor

COUNTING = """
import os, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
number = len(list(folder.glob("start-*")))
(folder / f"start-{number}.new").write_text(f"{os.getpid()} {child.pid}")
(folder / f"start-{number}.new").rename(folder / f"start-{number}")
time.sleep(300)
"""
STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(300)
"""
OWNER = """
import sys, time
from pathlib import Path
from deploy.local.servers import Redis
from deploy.local.supervisor import Program, Supervisor
folder = Path(sys.argv[1])
supervisor = Supervisor(folder / "logs")
redis = Redis(folder / "redis")
supervisor.serve(redis)
supervisor.start(Program(name="one", command=(sys.executable, "-c", "import time; time.sleep(300)")))
print(redis.pid, supervisor.pid("one"), flush=True)
time.sleep(300)
"""


def until(condition: Callable[[], bool]) -> bool:
    for _ in range(1500):
        if condition():
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(path: Path) -> list[int]:
    assert until(path.exists)
    return [int(part) for part in path.read_text().split()]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "logs", most_deaths=3, window=60, pause=0.02)
    yield made
    made.stop()


def test_what_dies_is_restarted_and_takes_its_children_with_it(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(Program(name="counting", command=(sys.executable, "-c", COUNTING, str(tmp_path))))
    first, first_child = pids(tmp_path / "start-0")
    assert supervisor.pid("counting") == first
    os.kill(first, signal.SIGKILL)
    second, second_child = pids(tmp_path / "start-1")
    assert second != first
    assert until(lambda: not alive(first_child))
    supervisor.stop()
    assert until(lambda: not alive(second) and not alive(second_child))
    supervisor.stop()
    assert not (tmp_path / "start-2").exists()


def test_what_dies_again_and_again_is_given_up_with_a_reason(supervisor: Supervisor) -> None:
    supervisor.start(Program(name="hopeless", command=(sys.executable, "-c", "print('no model'); raise SystemExit(3)")))
    assert until(lambda: supervisor.gave_up is not None)
    assert supervisor.gave_up is not None
    assert "hopeless died 4 times" in supervisor.gave_up
    log = supervisor.log("hopeless")
    assert str(log) in supervisor.gave_up
    assert log.read_text().splitlines() == ["no model"] * 4


def test_a_command_that_does_not_exist_is_given_up_too(supervisor: Supervisor) -> None:
    supervisor.start(Program(name="missing", command=("/no/such/command",)))
    assert until(lambda: supervisor.gave_up is not None)


def test_what_ignores_its_signal_is_killed_after_its_grace(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(Program(name="stubborn", command=(sys.executable, "-c", STUBBORN, str(tmp_path)), grace=0.3))
    assert until((tmp_path / "ready").exists)
    pid = supervisor.pid("stubborn")
    supervisor.stop()
    assert not alive(pid)


def test_a_server_that_dies_comes_back_on_its_port_and_one_that_is_stopped_stays_down(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    server = Redis(tmp_path / "redis", durable=False)
    supervisor.serve(server)
    port, pid = server.port, server.pid
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: server.pid not in {0, pid} and server.answers())
    assert server.port == port
    server.kill()
    time.sleep(0.6)  # three looks of the supervisor
    assert not server.pid
    server.start()
    assert server.port == port


def test_a_process_gets_its_environment_over_ours(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "kept")
    monkeypatch.setenv("THEIRS", "hidden")
    code = f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(os.environ['OURS'] + ' ' + os.environ['THEIRS'])"
    supervisor.start(
        Program(
            name="one",
            command=(sys.executable, "-c", f"{code}; import time; time.sleep(60)"),
            environment={"THEIRS": "laid over"},
        )
    )
    assert until(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_text() == "kept laid over")


def test_killing_the_supervisor_ends_everything_it_started(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        started = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(started) == 2
    assert all(alive(pid) for pid in started)
    owner.kill()
    owner.wait()
    assert until(lambda: not any(alive(pid) for pid in started))
