"""Decoding in exec'd, limited, recycled children.

A decoder is native code run on hostile bytes: it may crash, hang, or ask for all memory. So it never runs in a worker,
and never in a fork of one (a fork of a threaded process can deadlock, and keeps credentials in its memory): each call
goes to a fresh interpreter with an empty environment. `multiprocessing` was rejected too: Celery's prefork children
may not use it. A child takes `calls_per_child` calls, or fewer where it keeps much memory; a spare is started in the
background when one goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pipelines.jobs import errors
from pipelines.jobs.errors import (
    BatchsightError,
    DecoderCrashed,
    DecoderOutOfMemory,
    DecodeTimedOut,
    InternalError,
    MediaError,
)
from pipelines.media.limits import MediaLimits
from pipelines.media.options import PrepareOptions
from pipelines.media.pack import Pack
from pipelines.media.pages import DocumentInfo
from pipelines.media.sniff import MediaType
from pipelines.media.wire import WireClosed, WireError, WireTimeout, pack_from_wire, receive, send

_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package `pipelines`
_PIPE_BYTES = 1024 * 1024
_F_SETPIPE_SZ = 1031  # linux/fcntl.h
_STARVED = 3  # times the limit of a call that may be added to it, where the child had to wait for a processor so long


class _Waited:
    """The time for which a process was ready to run and had no processor, `most` seconds together.

    On a crowded machine it is not the file that takes so long: a page must not fail for good because of its neighbours.
    """

    def __init__(self, pid: int, *, most: float) -> None:
        self._path = Path(f"/proc/{pid}/schedstat")
        self._left = most
        self._counted = self._seconds()

    def more(self) -> float:
        """What has come since the last question."""
        now = self._seconds()
        given = max(0.0, min(now - self._counted, self._left))
        self._counted, self._left = now, self._left - given
        return given

    def _seconds(self) -> float:
        try:
            return int(self._path.read_text(encoding="ascii").split()[1]) / 1e9  # kernel: scheduler/sched-stats.rst
        except (OSError, ValueError, IndexError):
            return 0.0  # not every system counts it


class _Child:
    """One decoder process and its pipes."""

    def __init__(self, limits: MediaLimits, operations: str) -> None:
        self.calls = 0
        command = [sys.executable, "-E", "-s", "-m", "pipelines.media.child", operations]
        # One thread each: the cores are shared by worker processes, and idle threads of BLAS eat address space.
        environment = {
            "PATH": "/usr/bin:/bin",  # decord does not load without one
            "LANG": "C.UTF-8",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and fixed arguments
            [*command, json.dumps(asdict(limits)), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
            env=environment,
            bufsize=0,
            close_fds=True,
            start_new_session=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise InternalError("The decoder has no pipes.")
        self.pid = self._process.pid
        self._in = self._process.stdin
        self._out = self._process.stdout
        if sys.platform == "linux":
            import fcntl  # noqa: PLC0415 - POSIX alone has it

            with contextlib.suppress(OSError):  # above the user's share of pipe memory; the default does as well
                fcntl.fcntl(self._out.fileno(), _F_SETPIPE_SZ, _PIPE_BYTES)

    def alive(self) -> bool:
        return self._process.poll() is None

    def call(
        self, operation: str, request: dict[str, Any], *, seconds: float, max_bytes: int
    ) -> tuple[dict[str, Any], list[bytearray]]:
        deadline = time.monotonic() + seconds
        waited = _Waited(self.pid, most=_STARVED * seconds)
        send(self._in.fileno(), {"operation": operation, "request": request})
        self.calls += 1
        return receive(self._out.fileno(), deadline=deadline, more=waited.more, max_bytes=max_bytes)

    def kill(self) -> int:
        """End it, with all it started. The exit status; negative for a signal."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return self._reap()

    def settle(self, seconds: float = 5.0) -> int:
        """The exit status of a child that closed its pipe by itself; negative for a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.kill()

    def _reap(self) -> int:
        status = self._process.wait()
        self.forget()
        return status

    def forget(self) -> None:
        """Close our ends of the pipes: an idle child then ends by itself."""
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):
                pipe.close()


@dataclass(frozen=True, kw_only=True)
class PageOutcome:
    """What became of one page (from 0): a pack or an error, never both."""

    page: int
    pack: Pack | None = None
    error: BatchsightError | None = None


class Decoder:
    """A pool of decoder children for one process. Safe for threads; after a fork it starts children of its own.

    `operations` names the module whose `OPERATIONS` the children serve.
    """

    def __init__(self, limits: MediaLimits | None = None, *, operations: str = "pipelines.media.operations") -> None:
        self.limits = limits or MediaLimits()
        self._operations = operations
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._spare: Future[_Child] | None = None
        self._closed = False
        # Children are started by one thread that lives as long as the pool: the kernel's parent-death signal follows
        # the thread that started a process, not the process.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoder-starter")

    def probe(self, path: Path) -> DocumentInfo:
        """What the file is, see `pages.probe`. Raises `MediaError`."""
        value, _ = self._call("probe", {"path": str(path)})
        return DocumentInfo(**{**value, "type": MediaType(value["type"])})

    def prepare_image(self, path: Path, options: PrepareOptions) -> Pack:
        """A picture as a pack. Raises `MediaError`."""
        return self._pack("prepare_image", path, options)

    def prepare_page(self, path: Path, page: int, options: PrepareOptions) -> Pack:
        """One page (from 0) of a document as a pack. Raises `MediaError`."""
        return self._pack("prepare_page", path, options, page=page)

    def prepare_pages(self, path: Path, pages: Sequence[int], options: PrepareOptions) -> Iterator[PageOutcome]:
        """Pages of one document in the order given, one pack in memory at a time.

        The document stays open in the child between pages. A page that fails, crashes the decoder or hangs costs its
        own outcome and no other.
        """
        for page in pages:
            try:
                yield PageOutcome(page=page, pack=self.prepare_page(path, page, options))
            except BatchsightError as error:
                yield PageOutcome(page=page, error=error)

    def prepare_video(self, path: Path, options: PrepareOptions) -> Pack:
        """The sampled frames of a video as a pack. Raises `MediaError`.

        Where a reader crashes, the readers behind it are tried: decord does crash on damaged streams that FFmpeg reads.
        """
        readers = options.readers
        while True:
            try:
                return self._pack("prepare_video", path, options, readers=list(readers))
            except DecoderCrashed:
                readers = readers[1:]
                if not readers:
                    raise

    def _pack(self, operation: str, path: Path, options: PrepareOptions, **more: Any) -> Pack:
        values = options.to_json()
        if "readers" in more:
            values["readers"] = more.pop("readers")
        value, buffers = self._call(operation, {"path": str(path), "options": values, **more})
        try:
            return pack_from_wire(value, buffers)
        except (KeyError, ValueError, TypeError, IndexError) as error:  # a child that was taken over
            raise DecoderCrashed("The decoder gave an answer that makes no sense for this file.") from error

    def _call(self, operation: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytearray]]:
        child = self._acquire()
        reusable = False
        try:
            header, buffers = child.call(
                operation,
                request,
                seconds=self.limits.decode_wall_seconds,
                max_bytes=self.limits.decode_memory_bytes,
            )
            told_last = header["status"] not in {"ok", "error"} or header.get("last") is True
            reusable = not told_last and child.calls < self.limits.calls_per_child
        except WireTimeout:
            raise DecodeTimedOut(
                f"Decoding took longer than {self.limits.decode_wall_seconds:.0f} s and was stopped."
            ) from None
        except WireClosed as error:
            raise _death(child.settle()) from error
        except WireError as error:
            raise DecoderCrashed("The decoder gave an answer that makes no sense for this file.") from error
        finally:
            self._release(child, reusable=reusable)
        if header["status"] == "ok":
            return header["value"], buffers
        raise _reported(header)

    def _acquire(self) -> _Child:
        with self._lock:
            if os.getpid() != self._pid:
                # We are a fork: the children are our parent's. Closing our copies of the pipes does them no harm.
                for child in (*self._idle, *self._busy):
                    child.forget()
                self._begin()
            if self._closed:
                raise InternalError("The decoder pool is closed.")
            while self._idle:
                child = self._idle.pop()
                if child.alive():
                    self._busy.add(child)
                    return child
                child.kill()
            started = self._spare or self._starter.submit(self._start)
            self._spare = None
        child = started.result()
        with self._lock:
            self._busy.add(child)
        return child

    def _start(self) -> _Child:
        return _Child(self.limits, self._operations)

    def _release(self, child: _Child, *, reusable: bool) -> None:
        with self._lock:
            self._busy.discard(child)
            if reusable and not self._closed:
                self._idle.append(child)
                return
            if not self._closed and not self._idle and self._spare is None:
                self._spare = self._starter.submit(self._start)
        child.kill()

    def close(self) -> None:
        """End all children. Repeatable; calls in other threads end in an error."""
        with self._lock:
            if os.getpid() != self._pid or self._closed:
                return
            self._closed = True
            children = [*self._idle, *self._busy]
            if self._spare is not None:
                children.append(self._spare.result())
            self._idle, self._spare = [], None
        for child in children:
            child.kill()
        self._starter.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _death(status: int) -> MediaError:
    """Why a child died without an answer."""
    if status == -signal.SIGXCPU:
        return DecodeTimedOut("Decoding used more processor time than is allowed and was stopped.")
    if status == -signal.SIGKILL:  # not ours: the kernel's out-of-memory killer, or an operator
        return DecoderOutOfMemory("The decoder was killed for the memory that this file needs.")
    return DecoderCrashed(f"The decoder crashed on this file (exit status {status}).")


def _reported(header: dict[str, Any]) -> BatchsightError:
    if header["status"] == "out_of_memory":
        return DecoderOutOfMemory(
            "Decoding this file needs more memory than is allowed; send it at a lower resolution."
        )
    kind = getattr(errors, str(header.get("class")), None)
    if header["status"] == "error" and isinstance(kind, type) and issubclass(kind, BatchsightError):
        return kind(str(header["message"]), param=header["param"])
    defect = InternalError("The file could not be decoded because of a defect of ours.")
    defect.__cause__ = RuntimeError(str(header.get("trace")))
    return defect
