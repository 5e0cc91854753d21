"""Shards as Parquet, through pyarrow: an extra of the package (`batchsight[parquet]`), imported when first needed.

Columns are those of the results' lines; `metadata`, `output` and `provenance`, whose shape is the kind's or the
client's, are JSON text, so that all shards of all jobs have one schema.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.control.exports.spool import Line, Spool
from pipelines.jobs.errors import ConfigurationError
from pipelines.jobs.exports import Compression
from pipelines.store.values import to_json

ROW_GROUP = 5_000
"""Rows that are held in memory before they are written."""

_CODEC = {Compression.NONE: "none", Compression.GZIP: "gzip", Compression.ZSTD: "zstd"}
_JSON = ("metadata", "output", "provenance")
_SPENT = ("prompt_tokens", "cached_tokens", "completion_tokens", "tiles", "device_seconds", "cost")


class ParquetSpool(Spool):
    """One Parquet file. Raises `ConfigurationError` where pyarrow is not installed."""

    suffix = ".parquet"

    def __init__(self, folder: Path, codec: Compression) -> None:
        self._arrow, parquet = _pyarrow()
        self._schema = _schema(self._arrow)
        self._held: list[dict[str, Any]] = []
        super().__init__(folder)
        self._writer = parquet.ParquetWriter(self.file, self._schema, compression=_CODEC[codec])

    def _add(self, line: Line, encoded: bytes) -> None:
        del encoded
        self._held.append(_row(line))
        if len(self._held) >= ROW_GROUP:
            self._write()

    def _flush(self) -> None:
        if self._held:
            self._write()

    def _end(self) -> None:
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._held, schema=self._schema))
        self._held = []


def _row(line: Line) -> dict[str, Any]:
    row = {name: value for name, value in line.items() if name not in {"object", "usage", "error", *_JSON}}
    row.update({name: to_json(line[name]) if name in line else None for name in _JSON})
    row.update(line.get("usage") or {})
    row["created_at"] = datetime.fromisoformat(line["created_at"]) if "created_at" in line else None
    return row


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # noqa: PLC0415 - an extra: tens of megabytes that only Parquet needs
        from pyarrow import parquet  # noqa: PLC0415 - with it
    except ImportError as error:
        raise ConfigurationError(
            "Parquet needs pyarrow, which is not installed where the cpu workers run; the operator installs it with "
            "`pip install batchsight[parquet]`; or export as jsonl"
        ) from error
    return pyarrow, parquet


def _schema(arrow: Any) -> Any:
    text, number = arrow.string(), arrow.int64()
    return arrow.schema(
        [
            ("job_id", text),
            ("seq", number),
            ("document", number),
            ("name", text),
            ("page", number),
            ("state", text),
            ("attempt", number),
            ("text", text),
            ("flags", arrow.list_(text)),
            ("finish_reason", text),
            ("media_hash", text),
            ("mean_logprob", arrow.float64()),
            *((name, arrow.float64() if name in {"device_seconds", "cost"} else number) for name in _SPENT),
            *((name, text) for name in _JSON),
            ("created_at", arrow.timestamp("us", tz="UTC")),
        ]
    )
