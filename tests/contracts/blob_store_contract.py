"""What every blob store does. A test module subclasses `BlobStoreContract` and gives a fixture `store`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.blobs.base import BlobStore
from pipelines.jobs.errors import InvalidParameter, MediaNotFound, SourceUnavailable

UNSAFE_KEYS = ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\x00b", "a\nb", "a\\b", "k" * 1025]


def broken_source() -> Iterator[bytes]:
    yield b"half"
    raise SourceUnavailable("The source broke off.")


class BlobStoreContract:
    def test_what_was_put_comes_back(self, store: BlobStore) -> None:
        stat = store.put("a/b.bin", b"hello")
        assert (stat.key, stat.size, stat.sha256) == ("a/b.bin", 5, hashlib.sha256(b"hello").hexdigest())
        assert store.get("a/b.bin") == b"hello"
        assert store.stat("a/b.bin").size == 5
        assert b"".join(store.stream("a/b.bin")) == b"hello"

    @pytest.mark.parametrize("key", ["a b+c&d=e%20f.pdf", "ünï/漢字/🙂.png", "a..b/...c", "'\"<>#?*.txt", "~/-_.!()"])
    def test_keys_may_hold_any_printable_text(self, store: BlobStore, key: str) -> None:
        store.put(key, b"1")
        assert store.get(key) == b"1"
        assert [stat.key for stat in store.list("")] == [key]

    def test_a_file_and_pieces_are_stored_like_bytes(self, store: BlobStore, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x" * 3_000_000)
        whole = hashlib.sha256(b"x" * 3_000_000).hexdigest()
        assert store.put("file", path).sha256 == whole
        assert store.put("pieces", (b"x" * 1_000_000 for _ in range(3))).sha256 == whole
        assert store.get("file") == store.get("pieces")

    def test_an_empty_blob_is_a_blob(self, store: BlobStore) -> None:
        assert store.put("empty", b"").size == 0
        assert store.get("empty") == b""
        assert list(store.stream("empty")) in ([], [b""])

    def test_many_parts_make_one_blob(self, store: BlobStore) -> None:
        piece = bytes(range(256)) * 4096
        stat = store.put("big", (piece for _ in range(35)))
        assert stat.size == 35 * len(piece)
        digest = hashlib.sha256()
        for part in store.stream("big"):
            digest.update(part)
        assert digest.hexdigest() == stat.sha256

    def test_put_replaces(self, store: BlobStore) -> None:
        store.put("k", b"one")
        store.put("k", b"two")
        assert store.get("k") == b"two"

    def test_put_if_absent_keeps_what_is_there(self, store: BlobStore) -> None:
        assert store.put("k", b"one", if_absent=True).size == 3
        assert store.put("k", b"three", if_absent=True).size == 3
        assert store.get("k") == b"one"

    def test_a_source_that_breaks_leaves_nothing(self, store: BlobStore) -> None:
        with pytest.raises(SourceUnavailable):
            store.put("k", broken_source())
        with pytest.raises(MediaNotFound):
            store.get("k")
        assert list(store.list("")) == []

    def test_what_is_missing_is_not_found_at_once(self, store: BlobStore) -> None:
        for ask in (store.get, store.stream, store.stat):
            with pytest.raises(MediaNotFound):
                ask("missing/key")
        store.delete("missing/key")

    def test_a_folder_is_no_blob(self, store: BlobStore) -> None:
        store.put("a/b", b"1")
        for ask in (store.get, store.stream, store.stat):
            with pytest.raises(MediaNotFound):
                ask("a")

    def test_delete_removes_and_may_be_repeated(self, store: BlobStore) -> None:
        store.put("a/b", b"1")
        store.delete("a/b")
        store.delete("a/b")
        with pytest.raises(MediaNotFound):
            store.stat("a/b")
        assert list(store.list("")) == []

    def test_a_listing_is_in_key_order_under_its_prefix(self, store: BlobStore) -> None:
        keys = ["b", "a/2", "a/10", "a-b", "a/1/x", "a.b", "c/ä", "c/z"]
        for key in keys:
            store.put(key, key.encode())
        assert [stat.key for stat in store.list("")] == sorted(keys, key=str.encode)
        assert [stat.key for stat in store.list("a/")] == ["a/1/x", "a/10", "a/2"]
        assert [stat.key for stat in store.list("a/1")] == ["a/1/x", "a/10"]
        assert [stat.size for stat in store.list("c/")] == [3, 4]
        assert list(store.list("none/")) == []

    def test_a_listing_goes_on_behind_a_key(self, store: BlobStore) -> None:
        keys = sorted(f"p/{number:03}" for number in range(25))
        for key in keys:
            store.put(key, b"")
        assert [stat.key for stat in store.list("p/", start_after="p/009")] == keys[10:]
        assert [stat.key for stat in store.list("p/", start_after="p/0095")] == keys[10:]
        assert list(store.list("p/", start_after="p/024")) == []

    @pytest.mark.parametrize("key", UNSAFE_KEYS)
    def test_unsafe_keys_are_refused(self, store: BlobStore, key: str) -> None:
        for ask in (store.get, store.stat, store.stream, store.delete):
            with pytest.raises(InvalidParameter):
                ask(key)
        with pytest.raises(InvalidParameter):
            store.put(key, b"")
