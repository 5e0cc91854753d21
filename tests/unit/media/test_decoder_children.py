"""How the children of a decoder pool come and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.jobs.errors import DecoderCrashed, InternalError
from pipelines.media.isolate import Decoder
from pipelines.media.limits import MediaLimits
from pipelines.media.options import PrepareOptions
from pipelines.media.pack import TilePack
from tests.unit.media.processes import HOSTILE, children_of, gone, hostile, read
from tests.unit.media.samples import encoded, noise

OPTIONS = PrepareOptions(max_tiles=4, tile=56, dpi=72)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture"
    path.write_bytes(encoded(noise(300, 200), "PNG"))
    return path


def test_children_are_reused_and_recycled(picture: Path) -> None:
    with Decoder(MediaLimits(calls_per_child=3)) as decoder:
        seen = []
        for _ in range(7):
            decoder.prepare_image(picture, OPTIONS)
            seen.append(frozenset(children_of(os.getpid())))
    assert seen[0] == seen[1]
    assert seen[1] != seen[3]


def test_a_child_that_keeps_much_memory_is_recycled_after_its_answer(picture: Path) -> None:
    with Decoder(MediaLimits(child_resident_bytes=1)) as decoder:
        seen = []
        for _ in range(3):
            decoder.prepare_image(picture, OPTIONS)  # no call is sent to a child that is about to end
            seen.append(frozenset(children_of(os.getpid())))
    assert len(set(seen)) == 3


def test_threads_share_a_pool(picture: Path, tmp_path: Path) -> None:
    with Decoder(operations=HOSTILE) as decoder, ThreadPoolExecutor(4) as threads:
        bad = hostile(tmp_path, "segfault")

        def work(number: int) -> str:
            try:
                decoder.prepare_image(bad if number % 4 == 3 else picture, OPTIONS)
            except DecoderCrashed:
                return "crashed"
            return "fine"

        assert list(threads.map(work, range(16))) == ["fine", "fine", "fine", "crashed"] * 4


def test_an_idle_child_that_died_is_replaced_in_silence(picture: Path) -> None:
    with Decoder() as decoder:
        decoder.prepare_image(picture, OPTIONS)
        for pid in children_of(os.getpid()):
            if b"pipelines.media.child" in read(Path(f"/proc/{pid}/cmdline")):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        assert isinstance(decoder.prepare_image(picture, OPTIONS), TilePack)


def test_the_thread_that_asked_first_may_end(picture: Path) -> None:
    others = children_of(os.getpid())  # of earlier tests: they may be about to end
    with Decoder() as decoder:
        first = threading.Thread(target=decoder.prepare_image, args=(picture, OPTIONS))
        first.start()
        first.join()
        started = children_of(os.getpid()) - others
        assert len(started) == 1
        decoder.prepare_image(picture, OPTIONS)
        assert children_of(os.getpid()) - others == started


def test_a_closed_pool_has_no_children_and_takes_no_calls(picture: Path) -> None:
    before = children_of(os.getpid())
    decoder = Decoder()
    decoder.prepare_image(picture, OPTIONS)
    decoder.close()
    decoder.close()
    assert children_of(os.getpid()) <= before
    with pytest.raises(InternalError):
        decoder.prepare_image(picture, OPTIONS)


PARENT = """
import os, sys, time
from pathlib import Path
from pipelines.media.isolate import Decoder
from pipelines.media.options import PrepareOptions
decoder = Decoder(operations={operations!r})
decoder.prepare_image(Path({picture!r}), PrepareOptions(max_tiles=1))
{after}
"""


def run_parent(picture: Path, after: str, operations: str = HOSTILE) -> subprocess.Popen[str]:
    program = PARENT.format(operations=operations, picture=str(picture), after=after)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_children_end_when_their_parent_is_killed_in_the_middle_of_a_call(picture: Path, tmp_path: Path) -> None:
    bad = hostile(tmp_path, "hang")
    after = f"print('ready', flush=True); decoder.prepare_image(Path({str(bad)!r}), PrepareOptions())"
    with run_parent(picture, after) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        time.sleep(0.3)
        children = children_of(parent.pid)
        assert children
        parent.kill()
    assert gone(children)


def test_a_fork_starts_children_of_its_own(picture: Path) -> None:
    after = f"""
first = set(c.pid for c in decoder._idle)
if os.fork() == 0:
    decoder.prepare_image(Path({str(picture)!r}), PrepareOptions(max_tiles=1))
    assert not first & set(c.pid for c in decoder._idle)
    decoder.close()
    os._exit(42)
status = os.wait()[1]
decoder.prepare_image(Path({str(picture)!r}), PrepareOptions(max_tiles=1))
assert first == set(c.pid for c in decoder._idle)
print(os.waitstatus_to_exitcode(status))
"""
    with run_parent(picture, after) as parent:
        out, _ = parent.communicate(timeout=60)
    assert out.strip() == "42"
    assert parent.returncode == 0


def test_a_program_that_forgets_to_close_ends_all_the_same(picture: Path) -> None:
    with run_parent(picture, "print(*[c.pid for c in decoder._idle])") as parent:
        out, _ = parent.communicate(timeout=60)
    assert parent.returncode == 0
    assert gone({int(pid) for pid in out.split()})
