"""Identifiers.

Jobs, files and keys carry UUIDs of version 7 (RFC 9562): the first 48 bits are milliseconds since 1970, so that rows of
one time lie together in an index, and a range partition by job id is a range of time.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from datetime import datetime

_LOCK = threading.Lock()
_last_ms = 0
_counter = 0
_COUNTER_BITS = 12


def uuid7() -> uuid.UUID:
    """A new version 7 UUID, strictly growing within this process (RFC 9562, method 1: a 12-bit counter in `rand_a`)."""
    global _last_ms, _counter  # noqa: PLW0603 - the counter is the process's own clock, guarded by the lock
    with _LOCK:
        ms = time.time_ns() // 1_000_000
        if ms > _last_ms:
            _last_ms, _counter = ms, int.from_bytes(os.urandom(1))
        else:
            _counter += 1
            if _counter >> _COUNTER_BITS:
                _last_ms, _counter = _last_ms + 1, 0
        ms, counter = _last_ms, _counter
    tail = int.from_bytes(os.urandom(8)) & ((1 << 62) - 1)
    return uuid.UUID(int=(ms << 80) | (0x7 << 76) | (counter << 64) | (0b10 << 62) | tail)


def uuid7_floor(at: datetime) -> uuid.UUID:
    """The smallest UUID that sorts at or after `at`: a partition bound. `at` must carry a time zone."""
    if at.tzinfo is None:
        raise ValueError("a partition bound needs a time zone")
    return uuid.UUID(int=int(at.timestamp() * 1000) << 80)
