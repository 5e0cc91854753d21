"""Manifests: a list of media as JSON Lines or CSV, read in flat memory.

A line names a `url` (`s3://`, `https://` or `file:` + id of an upload), and may hold an `id`, `metadata` (an object)
and `overrides` (an object of job parameters). In CSV the first record names the columns; columns `metadata.x` and
`overrides.x` fill the objects with strings, other columns are refused. A bad line becomes a `ManifestError` with its
number; the next is read as if nothing had happened.
"""

from __future__ import annotations

import csv
import enum
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pipelines.jobs.errors import InvalidParameter

MAX_LINE_BYTES = 1024 * 1024
_FIELDS = ("url", "id", "metadata", "overrides")


class ManifestFormat(enum.StrEnum):
    """How a manifest is written."""

    JSONL = "jsonl"
    CSV = "csv"


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """One medium. `line` counts from 1."""

    line: int
    url: str
    id: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    overrides: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ManifestError:
    """A line that names no medium, and what to change in it."""

    line: int
    error: InvalidParameter


def read_manifest(
    pieces: Iterable[bytes], form: ManifestFormat, *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[ManifestEntry | ManifestError]:
    """Entries and errors in the order of the lines, whatever way the bytes are cut into pieces."""
    lines = _lines(pieces, max_line_bytes)
    yield from _read_csv(lines, max_line_bytes) if form is ManifestFormat.CSV else _read_jsonl(lines)


def _lines(pieces: Iterable[bytes], longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines with their ends; None for one that is too long, of which no more than a piece is kept."""
    number, buffer, dropping = 1, b"", False
    for piece in pieces:
        buffer += piece
        *whole, buffer = buffer.split(b"\n")
        for line in whole:
            yield number, None if dropping or len(line) > longest else line + b"\n"
            number, dropping = number + 1, False
        if len(buffer) > longest:
            buffer, dropping = b"", True
    if buffer or dropping:
        yield number, None if dropping else buffer


def _bad(line: int, why: str) -> ManifestError:
    return ManifestError(line=line, error=InvalidParameter(f"Line {line} of the manifest: {why}", param=f"line {line}"))


def _text(raw: bytes, number: int) -> str:
    return raw.decode("utf-8-sig" if number == 1 else "utf-8")


def _read_jsonl(lines: Iterator[tuple[int, bytes | None]]) -> Iterator[ManifestEntry | ManifestError]:
    for number, raw in lines:
        if raw is None:
            yield _bad(number, "the line is too long.")
            continue
        try:
            text = _text(raw, number).strip()
            if text:
                yield _entry(number, _decode(text))
        except UnicodeDecodeError:
            yield _bad(number, "it is not UTF-8.")
        except (ValueError, RecursionError):
            yield _bad(number, "it is not a JSON object.")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


# One decoder for all: `json.loads` with options of its own builds one at each call, half the cost of a short line.
_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _entry(line: int, values: object) -> ManifestEntry | ManifestError:
    if not isinstance(values, dict):
        return _bad(line, "it is not a JSON object.")
    for given in values:
        if given not in _FIELDS:
            return _bad(line, f"unknown field `{str(given)[:80]}`; known are {', '.join(_FIELDS)}.")
    url, name, metadata, overrides = map(values.get, _FIELDS)
    metadata = {} if metadata is None else metadata
    overrides = {} if overrides is None else overrides
    if not isinstance(url, str) or not url.strip():
        return _bad(line, "`url` must be a text that is not empty.")
    if name is not None and not isinstance(name, str):
        return _bad(line, "`id` must be a text.")
    if not isinstance(metadata, dict) or not isinstance(overrides, dict):
        return _bad(line, "`metadata` and `overrides` must be objects.")
    return ManifestEntry(line=line, url=url.strip(), id=name or None, metadata=metadata, overrides=overrides)


def _read_csv(lines: Iterator[tuple[int, bytes | None]], longest: int) -> Iterator[ManifestEntry | ManifestError]:
    header: list[str] | None = None
    for number, record in _records(lines, longest):
        if isinstance(record, ManifestError):
            yield record
            if header is None:
                return  # without column names nothing else can be read
        elif header is None:
            header = [name.strip() for name in record]
            wrong = [n for n in header if n not in _FIELDS[:2] and not n.startswith(("metadata.", "overrides."))]
            if "url" not in header or wrong or len(set(header)) != len(header):
                yield _bad(number, "the first record must name the columns: `url`, `id`, `metadata.…`, `overrides.…`.")
                return
        elif len(record) != len(header):
            yield _bad(number, f"it has {len(record)} fields; the first record names {len(header)}.")
        else:
            yield _entry(number, _nested(header, record))


def _nested(header: list[str], record: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    groups: dict[str, dict[str, str]] = {"metadata": {}, "overrides": {}}
    for name, value in zip(header, record, strict=True):
        group, dot, inner = name.partition(".")
        if dot:
            if value:
                groups[group][inner] = value
        else:
            values[name] = value
    return {**values, **groups}


def _records(
    lines: Iterator[tuple[int, bytes | None]], longest: int
) -> Iterator[tuple[int, list[str] | ManifestError]]:
    """CSV records with the number of their first line; a quoted field may go over several lines."""
    start, text = 0, ""
    for number, raw in lines:
        if not text:
            start = number
        if raw is None:
            text = ""
            yield start, _bad(number, "the line is too long.")
            continue
        try:
            text += _text(raw, number)
        except UnicodeDecodeError:
            text = ""
            yield start, _bad(number, "it is not UTF-8.")
            continue
        if text.count('"') % 2 and len(text) <= longest:
            continue  # inside of a quoted field
        yield from _record(start, text, longest)
        text = ""
    if text:
        yield from _record(start, text, longest)


def _record(line: int, text: str, longest: int) -> Iterator[tuple[int, list[str] | ManifestError]]:
    if not text.strip():
        return
    if len(text) > longest:
        yield line, _bad(line, "the record is too long; is a quotation mark missing?")
        return
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        yield line, _bad(line, f"it is not CSV ({error}).")
        return
    for record in records:
        if any(record):
            yield line, record
