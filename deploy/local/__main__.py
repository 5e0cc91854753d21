"""`python -m deploy.local demo | up | down | run`: what `make demo`, `make up` and `make down` call."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from deploy.local.demo import run_demo
from deploy.local.stack import Stack, StackOptions, describe
from pipelines.jobs.errors import ConfigurationError

_PORT = 8080


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="Batchsight on this machine")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="run a mixed load from nothing, print the results, stop everything")
    demo.add_argument("--folder", type=Path, help="data folder; default: a new temporary one")
    for name, text in (("up", "keep the stack up in the background"), ("run", "keep it up in the foreground")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--folder", type=Path, default=Path(".batchsight"), help="data folder")
        command.add_argument("--port", type=int, default=_PORT, help="of the api; 0: a free one")
    down = commands.add_parser("down", help="stop what `up` started")
    down.add_argument("--folder", type=Path, default=Path(".batchsight"), help="data folder")
    options = parser.parse_args(arguments)
    try:
        match options.command:
            case "demo":
                return run_demo(options.folder)
            case "up":
                return _up(options.folder.resolve(), options.port)
            case "run":
                return _run(options.folder.resolve(), options.port)
            case _:
                return _down(options.folder.resolve())
    except ConfigurationError as error:
        print(error.message, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _up(folder: Path, port: int) -> int:
    if pid := _running(folder):
        print(f"already up (pid {pid}); `make down` stops it", file=sys.stderr)
        _print(folder)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stack.json").unlink(missing_ok=True)
    with (folder / "stack.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.local", "run", "--folder", str(folder), "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print("starting the stack", file=sys.stderr)
    try:
        while not (folder / "stack.json").exists():
            if process.poll() is not None:
                print((folder / "stack.log").read_text(errors="replace")[-12_000:], file=sys.stderr)
                return 1
            time.sleep(0.1)
    except KeyboardInterrupt:
        process.terminate()
        process.wait(60)
        return 130
    _print(folder)
    return 0


def _run(folder: Path, port: int) -> int:
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    state = folder / "stack.json"
    stack = Stack(folder, StackOptions(api_port=port))
    try:
        addresses = stack.start()
        written = state.with_suffix(".new")
        written.touch(mode=0o600)
        written.write_text(json.dumps({"pid": os.getpid(), **describe(addresses)}), encoding="utf-8")
        written.replace(state)
        while not stop.wait(1.0):
            if stack.supervisor is not None and stack.supervisor.gave_up:
                print(stack.supervisor.gave_up, file=sys.stderr)
                return 1
        return 0
    finally:
        stack.stop()
        state.unlink(missing_ok=True)


def _down(folder: Path) -> int:
    pid = _running(folder)
    if not pid:
        print("nothing is up", file=sys.stderr)
        return 0
    os.kill(pid, signal.SIGTERM)
    for _ in range(600):
        if not _running(folder):
            print("stopped", file=sys.stderr)
            return 0
        time.sleep(0.1)
    print(f"pid {pid} is still stopping; see {folder / 'stack.log'}", file=sys.stderr)
    return 1


def _running(folder: Path) -> int:
    """The pid of this folder's stack, after checking that the process is really it; 0 otherwise."""
    state = folder / "stack.json"
    if not state.exists():
        return 0
    pid = int(json.loads(state.read_text(encoding="utf-8"))["pid"])
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return 0
    return pid if b"deploy.local" in command and str(folder).encode() in command else 0


def _print(folder: Path) -> None:
    state = json.loads((folder / "stack.json").read_text(encoding="utf-8"))
    print(f"api        {state['api_url']}  (docs at {state['api_url']}/docs)")
    print(f"api key    {state['api_key']}")
    print(f"postgres   {state['database_url']}")
    print(f"redis      {state['redis_url']}")
    print(f"s3         {state['s3_endpoint_url']}  key {state['s3_access_key_id']}  {state['s3_secret_access_key']}")
    print(f"model      {state['model']}{'' if state['trained'] else '  (random weights: the answers mean nothing)'}")
    print(f"data       {state['folder']}")
    print(f"\nexport BATCHSIGHT_URL={state['api_url']} BATCHSIGHT_API_KEY={state['api_key']}")


if __name__ == "__main__":
    sys.exit(main())
