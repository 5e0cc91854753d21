"""Packs: what CPU workers hand to engines, as one file.

A pack is a safetensors file inside one zstd frame with a content checksum. Its name is a hash of the tenant, of the
source bytes, of the preprocessing parameters and of the version below, so the same page asked twice is cut once, and a
key tells nothing across tenants. Two kinds: a `TilePack` for engines that take tiles, an `EncodedPack` (the encoded
page image, or the sampled frames) for engines that tile by themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import zstandard
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save

from pipelines.jobs.errors import PackDamaged

PREPROCESSING_VERSION = "2"
"""Raise it with every change of pixels or of what a pack says of them: it is part of each pack's name, so old packs are
never taken for new ones. 2: whether a picture is blank, and its grid of tiles.
"""

MAX_PACK_BYTES = 4 * 1024**3
_LEVEL = 1  # tiles are noisy: higher levels cost much and save little
_HEADER = 8  # safetensors begins with the header's length as a little-endian u64


@dataclass(frozen=True, kw_only=True)
class TilePack:
    """Tiles of one or more images, in order.

    `tiles`: uint8 `[n, t, t, 3]`, RGB, not normalised; `counts`: tiles of each image, summing to n; `digests`: SHA-256
    (hex) of each image's tile bytes; `meta`: small strings for provenance.
    """

    tiles: NDArray[np.uint8]
    counts: tuple[int, ...]
    digests: tuple[str, ...]
    meta: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tiles: NDArray[np.uint8], counts: tuple[int, ...], meta: Mapping[str, str] | None = None) -> TilePack:
        """A pack with its digests computed."""
        return cls(tiles=tiles, counts=counts, digests=tile_digests(tiles, counts), meta=dict(meta or {}))


@dataclass(frozen=True, kw_only=True)
class PackImage:
    """One encoded image: `mime` such as `image/jpeg`, its bytes, and their SHA-256 (hex)."""

    mime: str
    data: bytes
    digest: str


@dataclass(frozen=True, kw_only=True)
class EncodedPack:
    """Encoded images in order; `video` says that they are the sampled frames of one video."""

    images: tuple[PackImage, ...]
    video: bool = False
    meta: Mapping[str, str] = field(default_factory=dict)


Pack = TilePack | EncodedPack


def tile_digests(tiles: NDArray[np.uint8], counts: tuple[int, ...]) -> tuple[str, ...]:
    """SHA-256 (hex) of each image's tiles; the shape is hashed with them, so other tile sizes never collide."""
    digests, start = [], 0
    for count in counts:
        part = np.ascontiguousarray(tiles[start : start + count])
        digest = hashlib.sha256(repr(part.shape).encode())
        digest.update(part.data)
        digests.append(digest.hexdigest())
        start += count
    return tuple(digests)


def encode(pack: Pack) -> bytes:
    """The pack as one file. Raises `ValueError` where counts do not match the tiles."""
    if isinstance(pack, TilePack):
        _check(pack)
        tensors = {"tiles": np.ascontiguousarray(pack.tiles)}
        about: dict[str, object] = {"kind": "tiles", "counts": pack.counts, "digests": pack.digests}
    else:
        tensors = {f"image.{i}": np.frombuffer(image.data, np.uint8) for i, image in enumerate(pack.images)}
        images = [(image.mime, image.digest) for image in pack.images]
        about = {"kind": "images", "images": images, "video": pack.video}
    about["meta"] = dict(pack.meta)
    plain = safetensors_save(tensors, metadata={"batchsight": json.dumps(about, sort_keys=True)})
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(plain)


def decode(data: bytes, expected_sha256: str | None = None) -> Pack:
    """The pack of a file that `encode` made. Raises `PackDamaged` unless every byte is as it was written."""
    if expected_sha256 is not None and hashlib.sha256(data).hexdigest() != expected_sha256:
        raise PackDamaged("The tile pack does not have the checksum that was recorded; it is prepared again.")
    try:
        if zstandard.get_frame_parameters(data).content_size > MAX_PACK_BYTES:
            raise PackDamaged("The tile pack claims to be larger than any pack; it is prepared again.")
        plain = zstandard.ZstdDecompressor().decompress(data)
        tensors = safetensors_load(plain)
        length = int.from_bytes(plain[:_HEADER], "little")
        about = json.loads(json.loads(plain[_HEADER : _HEADER + length])["__metadata__"]["batchsight"])
        return _rebuild(about, tensors)
    except (zstandard.ZstdError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PackDamaged("The tile pack does not decode; it is prepared again.") from error


def _rebuild(about: dict[str, object], tensors: dict[str, NDArray[np.uint8]]) -> Pack:
    raw_meta = about["meta"]
    if not isinstance(raw_meta, dict):
        raise TypeError("meta must be an object")
    meta = {str(key): str(value) for key, value in raw_meta.items()}
    if about["kind"] == "tiles":
        counts, digests = about["counts"], about["digests"]
        if not isinstance(counts, list) or not isinstance(digests, list):
            raise TypeError("counts and digests must be lists")
        pack = TilePack(tiles=tensors["tiles"], counts=tuple(counts), digests=tuple(digests), meta=meta)
        _check(pack)
        return pack
    images = about["images"]
    if not isinstance(images, list):
        raise TypeError("images must be a list")
    return EncodedPack(
        images=tuple(
            PackImage(mime=mime, data=tensors[f"image.{i}"].tobytes(), digest=digest)
            for i, (mime, digest) in enumerate(images)
        ),
        video=bool(about["video"]),
        meta=meta,
    )


def _check(pack: TilePack) -> None:
    tiles = pack.tiles
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[-1] != 3:
        raise ValueError(f"tiles must be uint8 [n, t, t, 3], not {tiles.dtype} {tiles.shape}")
    if sum(pack.counts) != len(tiles) or len(pack.digests) != len(pack.counts) or min(pack.counts, default=1) < 1:
        raise ValueError("counts must be positive and sum to the number of tiles, with one digest each")


def pack_key(
    tenant_id: str, source_sha256: str, parameters: Mapping[str, object], version: str = PREPROCESSING_VERSION
) -> str:
    """The blob key of a pack: the tenant, and a hash over everything that decides its pixels.

    `parameters` must be plain JSON values; their order does not matter.
    """
    identity = json.dumps(
        {"tenant": tenant_id, "source": source_sha256, "parameters": dict(parameters), "version": version},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    name = hashlib.sha256(identity.encode()).hexdigest()
    return f"packs/{tenant_id}/{name[:2]}/{name}"
