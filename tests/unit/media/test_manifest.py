"""Manifests, however their bytes are cut."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.media.manifest import ManifestEntry, ManifestError, ManifestFormat, read_manifest

JSONL, CSV = ManifestFormat.JSONL, ManifestFormat.CSV


def entries(data: bytes, form: ManifestFormat) -> list[ManifestEntry | ManifestError]:
    return list(read_manifest([data], form))


def test_json_lines() -> None:
    data = (
        b'\xef\xbb\xbf{"url": "s3://b/1.png"}\r\n'
        b"\n"
        b'  {"url": " s3://b/2.png ", "id": "x", "metadata": {"k": [1]}, "overrides": {"dpi": 200}}\n'
        b'{"url": "s3://b/3.png", "id": null}'
    )
    assert entries(data, JSONL) == [
        ManifestEntry(line=1, url="s3://b/1.png"),
        ManifestEntry(line=3, url="s3://b/2.png", id="x", metadata={"k": [1]}, overrides={"dpi": 200}),
        ManifestEntry(line=4, url="s3://b/3.png"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[]",
        b'"text"',
        b"{}",
        b'{"url": ""}',
        b'{"url": "  "}',
        b'{"url": 3}',
        b'{"url": "s3://b/x", "id": 3}',
        b'{"url": "s3://b/x", "metadata": []}',
        b'{"url": "s3://b/x", "metadata": "x"}',
        b'{"url": "s3://b/x", "typo": 1}',
        b'{"url": "s3://b/x", "metadata": {"n": NaN}}',
        b'{"url": "\xff"}',
        b"[" * 100_000,
        b"x" * 2_000_000,
    ],
    ids=lambda line: repr(line[:40]),
)
def test_a_bad_line_is_named_and_the_next_is_read(line: bytes) -> None:
    first, bad, last = entries(b'{"url": "s3://b/1"}\n' + line + b'\n{"url": "s3://b/3"}\n', JSONL)
    assert isinstance(first, ManifestEntry)
    assert isinstance(bad, ManifestError)
    assert bad.line == 2
    assert "Line 2" in bad.error.message
    assert bad.error.param == "line 2"
    assert isinstance(last, ManifestEntry)
    assert last.line == 3


def test_csv() -> None:
    data = (
        b"\xef\xbb\xbfurl,id,metadata.title,overrides.dpi\r\n"
        b's3://b/1.png,a,"one, ""quoted""\nover two lines",200\r\n'
        b"\r\n"
        b"s3://b/2.png,,,\r\n"
    )
    assert entries(data, CSV) == [
        ManifestEntry(
            line=2,
            url="s3://b/1.png",
            id="a",
            metadata={"title": 'one, "quoted"\nover two lines'},
            overrides={"dpi": "200"},
        ),
        ManifestEntry(line=5, url="s3://b/2.png"),
    ]


def test_bad_csv_records_are_named() -> None:
    data = b"url,id\ns3://b/1\ns3://b/2,x\n,y\n\xff,z\ns3://b/3,w\n"
    kinds = [(type(entry).__name__, entry.line) for entry in entries(data, CSV)]
    assert kinds == [
        ("ManifestError", 2),
        ("ManifestEntry", 3),
        ("ManifestError", 4),
        ("ManifestError", 5),
        ("ManifestEntry", 6),
    ]


@pytest.mark.parametrize("header", [b"id\n", b"url,typo\n", b"url,url\n", b"s3://b/1.png,x\n", b"\xff\n"])
def test_csv_without_column_names_is_refused(header: bytes) -> None:
    found = entries(header + b"s3://b/1.png,x\n", CSV)
    assert [(type(entry), entry.line) for entry in found] == [(ManifestError, 1)]


def test_an_open_quotation_mark_ends_somewhere() -> None:
    data = b'url\n"s3://b/1\n' + b"x" * 700_000 + b"\n" + b"y" * 700_000 + b"\ns3://b/4\n"
    found = entries(data, CSV)
    assert isinstance(found[0], ManifestError)
    assert found[0].line == 2
    assert isinstance(found[-1], ManifestEntry)


def test_an_empty_manifest_is_empty() -> None:
    assert entries(b"", JSONL) == entries(b"", CSV) == entries(b"\n\n", JSONL) == []


@given(st.lists(st.text(min_size=1).filter(lambda text: bool(text.strip())), max_size=8), st.integers(1, 40))
def test_the_cuts_between_pieces_do_not_matter(urls: list[str], step: int) -> None:
    data = "\n".join(json.dumps({"url": url}, ensure_ascii=False) for url in urls).encode("utf-8", "surrogatepass")
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    assert list(read_manifest(pieces, JSONL)) == entries(data, JSONL)


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=6))
def test_csv_comes_back_from_pythons_writer(rows: list[tuple[str, str]]) -> None:
    import csv
    import io

    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(["url", "metadata.x"])
    kept = [(f"u{url.strip()}", value) for url, value in rows if "\x00" not in url + value and _encodes(url + value)]
    writer.writerows(kept)
    found = entries(out.getvalue().encode(), CSV)
    assert [(entry.url, entry.metadata.get("x", "")) for entry in found if isinstance(entry, ManifestEntry)] == [
        (url.strip(), value) for url, value in kept
    ]


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("form", [JSONL, CSV])
def test_a_long_manifest_needs_little_memory(form: ManifestFormat) -> None:
    def pieces() -> Iterator[bytes]:
        if form is CSV:
            yield b"url,id\n"
        for start in range(0, 20_000, 100):
            if form is CSV:
                yield b"".join(b"s3://bucket/%d.png,%d\n" % (n, n) for n in range(start, start + 100))
            else:
                yield b"".join(b'{"url": "s3://bucket/%d.png"}\n' % n for n in range(start, start + 100))

    tracemalloc.start()
    try:
        count = sum(isinstance(entry, ManifestEntry) for entry in read_manifest(pieces(), form))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 2_000_000
