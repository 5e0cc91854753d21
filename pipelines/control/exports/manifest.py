"""The manifest: written last, so whoever sees it sees everything it names.

What is not named in it is not part of the export: a writer that was killed may have left a shard that nobody counts.
It is made of committed rows alone, so two writers make the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from pipelines.control.lines import shown
from pipelines.jobs.errors import InternalError
from pipelines.jobs.models import Job
from pipelines.jobs.states import ItemState
from pipelines.store.exports import Export, Shard

NAME = "manifest.json"
FORMAT_VERSION = 1


def manifest_of(export: Export, job: Job, shards: Sequence[Shard]) -> bytes:
    """The manifest as JSON. Raises `InternalError` where the shards do not hold every item of the job once."""
    rows = sum(shard.rows for shard in shards if shard.content != "errors")
    errors = sum(shard.rows for shard in shards if shard.content == "errors")
    succeeded = job.counts[ItemState.SUCCEEDED]
    others = job.counts[ItemState.FAILED] + job.counts[ItemState.CANCELLED]
    if (rows, errors) != (succeeded, others):
        raise InternalError(f"{rows} results and {errors} errors were written of {succeeded} and {others}")
    options = export.options
    body = {
        "format_version": FORMAT_VERSION,
        "export_id": str(export.export_id),
        "job": {
            "id": str(job.job_id),
            "kind": job.kind,
            "state": job.state.value,
            "counts": {state.value: job.counts[state] for state in ItemState if state.terminal},
        },
        "format": options.format.value,
        "compression": options.codec.value,
        "created_at": shown(export.created_at),
        "rows": rows,
        "errors": errors,
        "bytes": sum(shard.bytes for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    return json.dumps(body, ensure_ascii=False, indent=1).encode() + b"\n"
