"""Messages between a worker and its decoder children: a length, a JSON header, and the buffers whose sizes it names."""

from __future__ import annotations

import json
import os
import select
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipelines.media.pack import EncodedPack, Pack, PackImage, TilePack

Buffer = bytes | bytearray | memoryview

_LENGTH = struct.Struct(">I")
MAX_HEADER_BYTES = 16 * 1024 * 1024


class WireError(Exception):
    """The other side sent something else than a message."""


class WireClosed(WireError):
    """The other side closed the pipe: it ended, or is about to."""


class WireTimeout(Exception):
    """The other side did not answer in time."""


def send(fd: int, header: dict[str, Any], buffers: Sequence[Buffer] = ()) -> None:
    """Write one message. Raises `WireClosed`."""
    head = json.dumps({**header, "sizes": [memoryview(buffer).nbytes for buffer in buffers]}).encode()
    try:
        for buffer in (_LENGTH.pack(len(head)), head, *buffers):
            view = memoryview(buffer).cast("B")
            while view.nbytes:
                view = view[os.write(fd, view) :]
    except OSError as error:
        raise WireClosed("the other side has gone") from error


class _Patience:
    """How long is still to be waited: until `deadline`, then for as many seconds as `more` gives, again and again."""

    def __init__(self, deadline: float, more: Callable[[], float] | None) -> None:
        self._deadline = deadline
        self._more = more

    def left(self) -> float:
        """Seconds. Raises `WireTimeout`."""
        while (seconds := self._deadline - time.monotonic()) <= 0:
            given = self._more() if self._more is not None else 0.0
            if given <= 0:
                raise WireTimeout
            self._deadline += given
        return seconds


def receive(
    fd: int, *, deadline: float | None = None, more: Callable[[], float] | None = None, max_bytes: int = 1 << 62
) -> tuple[dict[str, Any], list[bytearray]]:
    """Read one message. Raises `WireError`, `WireClosed`, `WireTimeout`.

    `deadline` on the monotonic clock; `more` is asked when it has passed: seconds to add, 0 to give up.
    """
    patience = None if deadline is None else _Patience(deadline, more)
    (length,) = _LENGTH.unpack(_exactly(fd, _LENGTH.size, patience))
    if length > MAX_HEADER_BYTES:
        raise WireError("the header is too long")
    try:
        header = json.loads(_exactly(fd, length, patience))
        sizes = [int(size) for size in header.pop("sizes")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireError("not a message") from error
    if sum(sizes) > max_bytes or min(sizes, default=0) < 0:
        raise WireError("the answer is too long")
    return header, [_exactly(fd, size, patience) for size in sizes]


def _exactly(fd: int, size: int, patience: _Patience | None) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while view.nbytes:
        while patience is not None and not poll.poll(patience.left() * 1000):
            pass
        count = os.readv(fd, [view])
        if count == 0:
            raise WireClosed("the other side has gone")
        view = view[count:]
    return buffer


def pack_to_wire(pack: Pack) -> tuple[dict[str, Any], list[Buffer]]:
    """A pack as header values and buffers, without compression."""
    if isinstance(pack, TilePack):
        value = {"shape": pack.tiles.shape, "counts": pack.counts, "digests": pack.digests, "meta": dict(pack.meta)}
        return {"tiles": value}, [np.ascontiguousarray(pack.tiles).data]
    images = [(image.mime, image.digest) for image in pack.images]
    about = {"images": images, "video": pack.video, "meta": dict(pack.meta)}
    return {"images": about}, [image.data for image in pack.images]


def pack_from_wire(value: dict[str, Any], buffers: Sequence[bytearray]) -> Pack:
    """The inverse of `pack_to_wire`; the tiles are a view of the buffer."""
    if "tiles" in value:
        tiles = value["tiles"]
        return TilePack(
            tiles=np.frombuffer(buffers[0], np.uint8).reshape(tiles["shape"]),
            counts=tuple(tiles["counts"]),
            digests=tuple(tiles["digests"]),
            meta=tiles["meta"],
        )
    images = value["images"]
    return EncodedPack(
        images=tuple(
            PackImage(mime=mime, data=bytes(data), digest=digest)
            for (mime, digest), data in zip(images["images"], buffers, strict=True)
        ),
        video=images["video"],
        meta=images["meta"],
    )
