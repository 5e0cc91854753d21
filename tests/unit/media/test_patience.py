"""A decoder that had no processor gets the time that it waited for one, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.media.isolate import _Waited
from pipelines.media.wire import WireTimeout, receive, send

SPIN = "while True: pass"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def test_an_answer_that_is_late_is_read_while_more_time_is_given(pipe: tuple[int, int]) -> None:
    out, into = pipe
    given = [0.01, 0.01, 0.0]
    answers = iter(given)

    def more() -> float:
        seconds = next(answers)
        if seconds == 0.0:
            send(into, {"status": "ok"}, [b"late"])
            return 5.0
        return seconds

    header, buffers = receive(out, deadline=time.monotonic(), more=more)
    assert header == {"status": "ok"}
    assert buffers == [bytearray(b"late")]
    assert list(answers) == []


def test_no_answer_ends_where_no_more_is_given(pipe: tuple[int, int]) -> None:
    asked = []

    def more() -> float:
        asked.append(1)
        return 0.01 if len(asked) < 3 else 0.0

    with pytest.raises(WireTimeout):
        receive(pipe[0], deadline=time.monotonic(), more=more)
    assert len(asked) == 3


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not count it")
def test_two_that_share_a_processor_wait_for_each_other() -> None:
    processor = min(os.sched_getaffinity(0))
    both = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(2)]
    try:
        for process in both:
            os.sched_setaffinity(process.pid, {processor})
        waited = _Waited(both[0].pid, most=0.2)
        given = 0.0
        end = time.monotonic() + 30
        while given < 0.2 and time.monotonic() < end:
            time.sleep(0.05)
            given += waited.more()
        assert given == pytest.approx(0.2)
        assert waited.more() == 0.0  # all that there was
    finally:
        for process in both:
            process.kill()
            process.wait()


def test_who_waits_for_nothing_is_given_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1) as idle:
        assert idle.stdout is not None
        idle.stdout.readline()
        time.sleep(0.2)
        waited = _Waited(idle.pid, most=10.0)
        time.sleep(0.2)
        assert waited.more() == 0.0
        idle.kill()
        idle.wait()
        assert waited.more() == 0.0  # it is gone
