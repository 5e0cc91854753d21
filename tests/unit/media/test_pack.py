"""Packs come back as they were written, or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.jobs.errors import PackDamaged, RetryClass
from pipelines.media.pack import EncodedPack, PackImage, TilePack, decode, encode, pack_key, tile_digests

TILES = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
PACK = TilePack.of(TILES, (3, 1, 1), {"type": "image/png", "page": "7"})


def test_tiles_come_back() -> None:
    data = encode(PACK)
    back = decode(data, hashlib.sha256(data).hexdigest())
    assert isinstance(back, TilePack)
    assert np.array_equal(back.tiles, TILES)
    assert (back.counts, back.digests, dict(back.meta)) == (PACK.counts, PACK.digests, dict(PACK.meta))


def test_images_come_back() -> None:
    images = tuple(PackImage(mime="image/jpeg", data=bytes([n]) * n, digest=f"{n}") for n in range(1, 12))
    pack = EncodedPack(images=images, video=True, meta={"seconds": "1,2"})
    assert decode(encode(pack)) == pack


def test_the_same_pack_is_the_same_file() -> None:
    assert encode(PACK) == encode(TilePack.of(TILES.copy(), (3, 1, 1), {"page": "7", "type": "image/png"}))


def test_digests_tell_images_apart() -> None:
    first, second, third = PACK.digests
    assert len({first, second, third}) == 3
    assert tile_digests(TILES[3:4], (1,)) == (second,)
    assert tile_digests(TILES[:1].reshape(4, 14, 14, 3), (4,)) != tile_digests(TILES[:1], (1,))


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_one_wrong_byte_is_damage(position: int, change: int) -> None:
    whole = encode(PACK)
    data = bytearray(whole)
    data[position % len(data)] ^= change
    with pytest.raises(PackDamaged):
        decode(bytes(data), hashlib.sha256(whole).hexdigest())


@pytest.mark.parametrize("cut", [0, 1, 10, 500, -1])
def test_a_short_file_is_damage_without_a_checksum_too(cut: int) -> None:
    with pytest.raises(PackDamaged) as caught:
        decode(encode(PACK)[:cut])
    assert caught.value.retry is RetryClass.REPAIR


def test_the_frame_carries_its_own_checksum() -> None:
    data = bytearray(encode(PACK))
    data[-1] ^= 1  # the last four bytes are zstd's content checksum
    with pytest.raises(PackDamaged):
        decode(bytes(data))


def test_counts_must_match_the_tiles() -> None:
    for wrong in ((4,), (5, 1), (5, 0), ()):
        with pytest.raises(ValueError, match="counts"):
            encode(replace(PACK, counts=wrong, digests=("",) * len(wrong)))
    with pytest.raises(ValueError, match="uint8"):
        encode(replace(PACK, tiles=TILES.astype(np.int32).view(np.uint8)[..., :2]))


def test_the_key_depends_on_everything_that_decides_the_pixels() -> None:
    source, parameters = "ab" * 32, {"max_tiles": 12, "dpi": 150}
    keys = {
        pack_key("t1", source, parameters),
        pack_key("t2", source, parameters),
        pack_key("t1", "cd" * 32, parameters),
        pack_key("t1", source, {**parameters, "dpi": 200}),
        pack_key("t1", source, parameters, version="other"),
    }
    assert len(keys) == 5
    assert pack_key("t1", source, {"dpi": 150, "max_tiles": 12}) in keys
    assert all(key.startswith(("packs/t1/", "packs/t2/")) and source not in key for key in keys)
