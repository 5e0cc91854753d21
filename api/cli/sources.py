"""From words on the command line to a job's source: S3 addresses, URLs, uploaded ids, local files and folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

_FILE_ID = re.compile(r"\Afile-[0-9a-f]{32}\Z")
_MAGIC = re.compile(r"[*?\[{]")
_MANIFESTS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}

Upload = Callable[[Path], str]


def source_of(words: Sequence[str], *, manifest: bool, upload: Upload) -> dict[str, Any]:
    """The request's `source`. Local files are uploaded as they are met. Raises `typer.BadParameter`."""
    if not words:
        return {"type": "none"}
    if manifest:
        return _manifest(words, upload)
    prefixes = [word for word in words if _is_prefix(word)]
    if prefixes:
        if len(words) > 1:
            raise typer.BadParameter(f"{prefixes[0]} is a prefix or a glob: give one alone, or list objects")
        return {"type": "prefix", "url": prefixes[0]}
    return {"type": "media", "media": [entry for word in words for entry in _entries(word, upload)]}


def _entries(word: str, upload: Upload) -> Iterator[dict[str, Any]]:
    if word.startswith(("s3://", "https://", "http://")):
        yield {"url": word}
    elif _FILE_ID.match(word):
        yield {"file_id": word}
    else:
        for path in _local(word):
            yield {"file_id": upload(path), "id": str(path)}


def _local(word: str) -> list[Path]:
    path = Path(word).expanduser()
    if path.is_dir():
        found = sorted(entry for entry in path.rglob("*") if entry.is_file() and not entry.name.startswith("."))
        if not found:
            raise typer.BadParameter(f"the folder {word} holds no file")
        return found
    if not path.is_file():
        raise typer.BadParameter(f"{word} is no file here; write s3://bucket/key for an object")
    return [path]


def _manifest(words: Sequence[str], upload: Upload) -> dict[str, Any]:
    if len(words) != 1:
        raise typer.BadParameter("--manifest takes one manifest")
    word = words[0]
    form = _MANIFESTS.get(Path(word).suffix.lower())
    if form is None:
        raise typer.BadParameter(f"{word} must end in .jsonl, .ndjson or .csv, so that its form is known")
    if word.startswith("s3://"):
        return {"type": "manifest", "url": word, "format": form}
    return {"type": "manifest", "file_id": upload(_local(word)[0]), "format": form}


def _is_prefix(word: str) -> bool:
    return word.startswith("s3://") and (word.endswith("/") or _MAGIC.search(word) is not None)
