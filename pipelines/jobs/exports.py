"""What an export of a job's results is asked to be: where to, in which form, in shards of which size."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.jobs.errors import InvalidParameter
from pipelines.jobs.models import JsonObject

MiB = 1024 * 1024


class ExportFormat(enum.StrEnum):
    """The form of the results."""

    JSONL = "jsonl"  # the lines of GET /results, in shards
    PARQUET = "parquet"  # the same as columns, in shards
    FILES = "files"  # one file an item


class Compression(enum.StrEnum):
    """How shards are packed; in Parquet, its own codec."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


class FileContent(enum.StrEnum):
    """What each file of the format `files` holds."""

    MARKDOWN = "markdown"
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """`url` None: the installation's own store. A shard ends at `shard_rows` or at `shard_bytes` before packing."""

    url: str | None = None
    format: ExportFormat = ExportFormat.JSONL
    compression: Compression | None = None
    content: FileContent = FileContent.MARKDOWN
    shard_rows: int = 50_000
    shard_bytes: int = 128 * MiB

    @property
    def codec(self) -> Compression:
        """The compression that is meant: Parquet is packed unless told otherwise."""
        if self.compression is not None:
            return self.compression
        return Compression.ZSTD if self.format is ExportFormat.PARQUET else Compression.NONE

    def check(self) -> None:
        """Raise `InvalidParameter` where two options contradict each other."""
        if self.format is ExportFormat.FILES and self.codec is not Compression.NONE:
            raise InvalidParameter("compression goes with jsonl and parquet, not with files", param="compression")
        if self.format is not ExportFormat.FILES and self.content is not FileContent.MARKDOWN:
            raise InvalidParameter("content goes with the format files", param="content")

    def to_json(self) -> dict[str, Any]:
        """The stored form, without the address."""
        return {name: value for name, value in asdict(self).items() if name != "url" and value is not None}

    @classmethod
    def from_json(cls, url: str | None, value: JsonObject) -> ExportOptions:
        """The inverse of `to_json`."""
        return cls(
            url=url,
            format=ExportFormat(value["format"]),
            compression=Compression(value["compression"]) if "compression" in value else None,
            content=FileContent(value["content"]),
            shard_rows=value["shard_rows"],
            shard_bytes=value["shard_bytes"],
        )
