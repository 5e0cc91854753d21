"""The decoder's operations, for children that meet poison: a marker behind a picture's last byte says how they die."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from pipelines.media import operations
from pipelines.media.operations import Answer, Operation, Session

__all__ = ["MARK", "OPERATIONS", "Session"]

MARK = b"\nchaos:"
_TAIL = 64


def _poisoned(operation: Operation) -> Operation:
    def run(session: Session, request: dict[str, Any]) -> Answer:
        tail = Path(request["path"]).read_bytes()[-_TAIL:]
        match tail.partition(MARK)[2]:
            case b"segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case b"hang":
                time.sleep(3_600)
            case b"memory":
                bytearray(2 * session.limits.decode_memory_bytes)
        return operation(session, request)

    return run


OPERATIONS = {name: _poisoned(operation) for name, operation in operations.OPERATIONS.items()}
