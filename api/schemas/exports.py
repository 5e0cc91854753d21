"""Exports of results, as clients ask for and see them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from api.schemas.base import BUCKET, Answer, Request
from pipelines.jobs.exports import Compression, ExportFormat, ExportOptions, FileContent, MiB
from pipelines.jobs.states import ExportState

# As for a job's addresses: what refuses one says better what to change than a pattern could.
_PART = r"[^/\\*?\[\]{}\x00-\x1f\x7f.][^/\\*?\[\]{}\x00-\x1f\x7f]*"
_PREFIX = {"pattern": rf"^{BUCKET}(?:{_PART}/)*$"}

# Files are not packed, and only files have a choice of content.
_TOGETHER: dict[str, Any] = {
    "anyOf": [
        {"properties": {"format": {"enum": ["jsonl", "parquet"]}, "content": {"const": "markdown"}}},
        {
            "required": ["format"],
            "properties": {"format": {"const": "files"}, "compression": {"enum": [None, "none"]}},
        },
    ]
}

Format = Literal["jsonl", "parquet", "files"]
Codec = Literal["none", "gzip", "zstd"]
Content = Literal["markdown", "text", "json"]


class ExportRequest(Request):
    """Where results are written to, and in which form."""

    model_config = ConfigDict(json_schema_extra=_TOGETHER)

    url: Annotated[str, Field(min_length=6, max_length=500, json_schema_extra=_PREFIX)] | None = Field(
        None,
        description="`s3://bucket/prefix/` that your tenant may write to; left out: the installation's own store",
        examples=["s3://exports/2026/"],
    )
    format: Format = Field(
        "jsonl", description="`jsonl`: the lines of the results; `parquet`: columns; `files`: one file an item"
    )
    compression: Codec | None = Field(None, description="of jsonl (none) and parquet (zstd)")
    content: Content = Field("markdown", description="what each file holds; with the format `files`")
    shard_rows: int = Field(50_000, ge=100, le=100_000, description="results a shard, at most")
    shard_bytes: int = Field(128 * MiB, ge=MiB, le=512 * MiB, description="bytes a shard before packing, about")

    def options(self) -> ExportOptions:
        """The domain's form."""
        return ExportOptions(
            url=self.url,
            format=ExportFormat(self.format),
            compression=None if self.compression is None else Compression(self.compression),
            content=FileContent(self.content),
            shard_rows=self.shard_rows,
            shard_bytes=self.shard_bytes,
        )


class ExportFailure(Answer):
    """A stable code and a sentence."""

    code: str
    message: str


class Export(Answer):
    """An export. `rows` and `errors`: items written with and without a result; `total`: items of the job so far."""

    id: uuid.UUID
    object: Literal["export"] = "export"
    job_id: uuid.UUID
    state: ExportState
    url: str | None = Field(None, description="the folder it is written to; null: the installation's own store")
    format: Format
    compression: Codec
    content: Content | None = None
    shards: int
    rows: int
    errors: int
    bytes: int
    total: int
    progress: float = Field(ge=0, le=1)
    error: ExportFailure | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    links: dict[str, str]
