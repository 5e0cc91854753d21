"""Blobs in memory: for tests of other rooms and for dry runs. The simplest thing that meets the port."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

from pipelines.blobs.base import CHUNK_BYTES, BlobStat, Data, Hashed, check_key
from pipelines.jobs.errors import MediaNotFound


class MemoryBlobStore:
    """Meets `BlobStore`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[str, tuple[bytes, BlobStat]] = {}

    def put(self, key: str, data: Data, *, if_absent: bool = False) -> BlobStat:
        """See `BlobStore.put`."""
        check_key(key)
        whole = b"".join(Hashed(data))
        digest = hashlib.sha256(whole).hexdigest()
        stat = BlobStat(key=key, size=len(whole), sha256=digest, modified=datetime.now(UTC))
        with self._lock:
            if if_absent and key in self._blobs:
                return self._blobs[key][1]
            self._blobs[key] = (whole, stat)
        return stat

    def _find(self, key: str) -> tuple[bytes, BlobStat]:
        check_key(key)
        with self._lock:
            found = self._blobs.get(key)
        if found is None:
            raise MediaNotFound("No blob is stored under this key.")
        return found

    def get(self, key: str) -> bytes:
        """See `BlobStore.get`."""
        return self._find(key)[0]

    def stream(self, key: str) -> Iterator[bytes]:
        """See `BlobStore.stream`."""
        whole = self.get(key)
        return (whole[start : start + CHUNK_BYTES] for start in range(0, len(whole), CHUNK_BYTES))

    def stat(self, key: str) -> BlobStat:
        """See `BlobStore.stat`."""
        return self._find(key)[1]

    def delete(self, key: str) -> None:
        """See `BlobStore.delete`."""
        check_key(key)
        with self._lock:
            self._blobs.pop(key, None)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[BlobStat]:
        """See `BlobStore.list`; a snapshot."""
        with self._lock:
            stats = [stat for key, (_, stat) in self._blobs.items() if key.startswith(prefix)]
        behind = start_after.encode()
        yield from sorted((stat for stat in stats if stat.key.encode() > behind), key=lambda stat: stat.key.encode())

    def presign_get(self, key: str, *, expires: float) -> str | None:
        """There is no server."""
        del key, expires
        return None

    def presign_put(self, key: str, *, expires: float) -> str | None:
        """There is no server."""
        del key, expires
        return None
