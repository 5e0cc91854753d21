"""The shelf of packs: a row and a blob each, stored by PREPARE, verified and kept warm for INFER.

Blob first, then row: a row always has its blob, and a blob without a row is collected later. The row is locked by reuse
and by collection alike (`pipelines.store.packs`), so a pack that was found is not collected under its finder. A small
pack (text alone, an icon, a blank page) lies in its row: it costs no request to the blob store, neither to write nor to
read, for the claim brings it along.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from pipelines.blobs.base import BlobStore
from pipelines.engine.types import EncodedImage, EncodedImages, Tiles
from pipelines.jobs.errors import MediaNotFound, PackDamaged
from pipelines.jobs.models import JobSpec, PackRef
from pipelines.media import pack as files
from pipelines.media.pack import Pack, TilePack
from pipelines.steps.complete import Transactions
from pipelines.steps.infer import LoadedPack
from pipelines.steps.prepare import PutPack, StoredPack, views_of
from pipelines.store import packs

_CACHE_BYTES = 256 * 1024 * 1024


class Shelf:
    """Packs by key. Thread-safe. `inline`: packs of at most so many bytes lie in their row."""

    def __init__(self, transactions: Transactions, blobs: BlobStore, *, inline: int = 0) -> None:
        self._transactions = transactions
        self._blobs = blobs
        self._inline = inline

    def find(self, keys: Sequence[str]) -> Mapping[str, StoredPack]:
        """Those of `keys` that are there; their age begins anew."""
        with self._transactions.begin() as conn:
            rows = packs.lookup_and_touch(conn, keys)
        return {
            row.key: StoredPack(
                ref=PackRef(key=row.key, sha256=row.sha256, size=row.size, tiles=row.tiles), media_hash=row.media_hash
            )
            for row in rows
        }

    def put(self, key: str, data: bytes, *, tiles: int, media_hash: str) -> PutPack:
        """Write the blob, unless the pack is small. Raises `BlobStoreUnavailable`."""
        small = len(data) <= self._inline
        if not small:
            self._blobs.put(key, data)
        ref = PackRef(key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data), tiles=tiles)
        return PutPack(stored=StoredPack(ref=ref, media_hash=media_hash), inline=data if small else None)

    def record(self, spec: JobSpec, put: Sequence[PutPack]) -> None:
        """The rows, in one transaction. Raises `StoreUnavailable`."""
        new = [
            packs.NewPack(pack=entry.stored.ref, media_hash=entry.stored.media_hash, data=entry.inline) for entry in put
        ]
        with self._transactions.begin() as conn:
            packs.record(conn, tenant_id=spec.tenant_id, packs=new)


class Loader:
    """Loads packs for an engine: fetched, checked, decoded; a few stay in memory for the questions that follow."""

    def __init__(self, blobs: BlobStore, *, cache_bytes: int = _CACHE_BYTES) -> None:
        self._blobs = blobs
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, tuple[LoadedPack, int]] = OrderedDict()
        self._held = 0

    def load(self, pack: PackRef) -> LoadedPack:
        """The pack of this reference. Raises `PackDamaged` where it is missing or not what was stored."""
        name = f"{pack.key} {pack.sha256}"
        with self._lock:
            if name in self._cache:
                self._cache.move_to_end(name)
                return self._cache[name][0]
        try:
            data = self._blobs.get(pack.key) if pack.data is None else pack.data
        except MediaNotFound as error:
            raise PackDamaged("the tile pack is gone; it is prepared again") from error
        if len(data) != pack.size:
            raise PackDamaged("the tile pack has another length than was recorded; it is prepared again")
        found = files.decode(data, pack.sha256)
        loaded = LoadedPack(media=_for_engine(found), views=views_of(found.meta))
        self._keep(name, loaded, _bytes_of(found))
        return loaded

    def _keep(self, name: str, loaded: LoadedPack, size: int) -> None:
        with self._lock:
            if name in self._cache or size > self._cache_bytes:
                return
            self._cache[name] = (loaded, size)
            self._held += size
            while self._held > self._cache_bytes:
                _, (_, freed) = self._cache.popitem(last=False)
                self._held -= freed


def _for_engine(pack: Pack) -> Tiles | EncodedImages | None:
    if isinstance(pack, TilePack):
        if not pack.counts:
            return None
        return Tiles(pixels=pack.tiles, counts=pack.counts, digests=pack.digests)
    if not pack.images:
        return None
    images: Sequence[EncodedImage] = [
        EncodedImage(mime=image.mime, data=image.data, digest=image.digest) for image in pack.images
    ]
    return EncodedImages(images=tuple(images), video=pack.video)


def _bytes_of(pack: Pack) -> int:
    if isinstance(pack, TilePack):
        return int(pack.tiles.nbytes)
    return sum(len(image.data) for image in pack.images)
