"""The decoder child: `python -m pipelines.media.child <operations module> <limits as JSON>`.

Started by `isolate` with no environment, no descriptors but its pipes, and its own session. It limits itself before it
reads a byte of anybody's media, answers one request at a time, and ends when its parent does.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any, NoReturn

from pipelines.jobs.errors import BatchsightError
from pipelines.media.limits import MediaLimits
from pipelines.media.wire import WireClosed, receive, send

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38


def _restrict(limits: MediaLimits, parent: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (limits.decode_memory_bytes, limits.decode_memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.decode_file_bytes, limits.decode_file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(0)


def _allow_cpu(seconds: int) -> None:
    """RLIMIT_CPU counts the whole life of a process, so each call gets its seconds on top of those used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds + 1, resource.RLIM_INFINITY))


def _answer(session: Any, operations: dict[str, Any], header: dict[str, Any], out: int) -> bool:
    """Serve one request; False when this child should not be used again."""
    try:
        value, buffers = operations[header["operation"]](session, header["request"])
    except MemoryError:
        session.close()
        send(out, {"status": "out_of_memory"})
        return False
    except BatchsightError as error:
        send(out, {"status": "error", "class": type(error).__name__, "message": error.message, "param": error.param})
        return True
    except Exception:  # noqa: BLE001 - the boundary of the process: the parent reports it as our defect
        send(out, {"status": "defect", "trace": traceback.format_exc()})
        return False
    # Said with the answer: the parent must not send the next request to a child that is about to end.
    fat = _resident_bytes() > session.limits.child_resident_bytes
    send(out, {"status": "ok", "value": value, "last": fat}, buffers)
    return not fat


def _resident_bytes() -> int:
    """Memory that this process really has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - for every call: a Path costs more than the read
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def main(arguments: list[str]) -> NoReturn:
    """Serve until the parent closes the pipe."""
    module, raw_limits, parent = arguments
    limits = MediaLimits(**json.loads(raw_limits))
    _restrict(limits, int(parent))
    # Native libraries print to stdout; the answers go where they cannot.
    out = os.dup(1)
    os.dup2(2, 1)
    operations = importlib.import_module(module)
    session = operations.Session(limits)
    served = 0
    try:
        while served < limits.calls_per_child:
            header, _ = receive(0)
            _allow_cpu(limits.decode_cpu_seconds)
            if not _answer(session, operations.OPERATIONS, header, out):
                break
            served += 1
    except WireClosed:
        os._exit(0)  # the parent has gone
    os._exit(0)  # native libraries crash in their own exit handlers; there is nothing left to flush


if __name__ == "__main__":
    main(sys.argv[1:])
