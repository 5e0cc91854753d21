"""From what the store knows to what clients see."""

from __future__ import annotations

from typing import Any

from api.ids import show_file, show_url
from api.schemas import exports
from api.schemas import jobs as schema
from api.schemas.files import File
from pipelines.control.exports.target import folder_of
from pipelines.control.query import ItemView, JobView, ResultView
from pipelines.jobs.exports import ExportFormat
from pipelines.jobs.states import ExportState, ItemState
from pipelines.store.exports import Export
from pipelines.store.files import StoredFile

_SHOWN = 20
_SHOWN_TEXT = 200
PRIORITY_NAMES = {value: name for name, value in schema.PRIORITIES.items()}


def job(view: JobView, *, gpu_second_cost: float) -> schema.Job:
    """A job."""
    found = view.job
    own = f"/v1/jobs/{found.job_id}"
    failed = found.error_code is not None
    return schema.Job(
        id=found.job_id,
        kind=found.kind,
        state=found.state,
        priority=PRIORITY_NAMES[found.priority],
        parameters=dict(found.parameters),
        source=shown_source(dict(found.source)),
        metadata=dict(found.metadata),
        counts=schema.Counts(**{state.value: count for state, count in found.counts.items()}),
        total=found.item_count,
        planned=view.planned,
        progress=round(view.progress, 4),
        eta_seconds=None if view.eta_seconds is None else round(view.eta_seconds, 1),
        queue_position=view.queue_position,
        usage=usage(dict(found.usage), gpu_second_cost),
        errors=dict(found.errors),
        error=schema.Failure(code=found.error_code or "", message=found.error_message or "") if failed else None,
        parent_id=found.parent_id,
        schedule_id=found.schedule_id,
        schedule_run_id=found.schedule_run_id,
        webhook_endpoint_id=found.webhook_endpoint_id,
        version=found.version,
        created_at=found.created_at,
        started_at=found.started_at,
        finished_at=found.finished_at,
        deadline_at=found.deadline_at,
        cancel_requested_at=found.cancel_requested_at,
        links={
            "self": own,
            "items": f"{own}/items",
            "results": f"{own}/results",
            "exports": f"{own}/exports",
            "cancel": f"{own}/cancel",
            "redrive": f"{own}/redrive",
        },
    )


def usage(spent: dict[str, Any], gpu_second_cost: float) -> schema.Usage:
    """Counters, and what they cost."""
    seconds = float(spent.get("device_seconds", 0.0))
    return schema.Usage(
        prompt_tokens=spent.get("prompt_tokens", 0),
        cached_tokens=spent.get("cached_tokens", 0),
        completion_tokens=spent.get("completion_tokens", 0),
        tiles=spent.get("tiles", 0),
        device_seconds=round(seconds, 3),
        cost=round(seconds * gpu_second_cost, 6),
    )


def item(view: ItemView, result: ResultView | None = None) -> schema.Item:
    """An item, with its answer where it is asked for."""
    return schema.Item(
        job_id=view.job_id,
        seq=view.seq,
        document=view.doc,
        name=view.name,
        page=_page(view.page),
        media=[show_url(medium.url) for medium in view.media],
        metadata=dict(view.metadata),
        state=view.state,
        attempt=view.attempt,
        losses=view.losses,
        tiles=view.tiles,
        worker=view.worker,
        error=_failure(view),
        text=result.text if result else None,
        output=dict(result.output) if result and result.output is not None else None,
        flags=list(result.flags) if result else None,
        created_at=view.created_at,
        prepared_at=view.prepared_at,
        started_at=view.started_at,
        finished_at=view.finished_at,
    )


def export(found: Export, *, total: int) -> exports.Export:
    """An export, of a job of so many items."""
    own = f"/v1/jobs/{found.job_id}/exports/{found.export_id}"
    options = found.options
    links = {"self": own, "job": f"/v1/jobs/{found.job_id}", "cancel": f"{own}/cancel"}
    url = None
    if options.url is None:
        links["content"] = f"{own}/content"
    else:
        url = f"{options.url.rstrip('/')}/{folder_of(found.tenant_id, found.job_id, found.export_id, own=False)}"
    done = 1.0 if found.state is ExportState.SUCCEEDED or not total else (found.rows + found.errors) / total
    return exports.Export(
        id=found.export_id,
        job_id=found.job_id,
        state=found.state,
        url=url,
        format=options.format.value,
        compression=options.codec.value,
        content=options.content.value if options.format is ExportFormat.FILES else None,
        shards=found.shards,
        rows=found.rows,
        errors=found.errors,
        bytes=found.bytes,
        total=total,
        progress=round(min(1.0, done), 4),
        error=exports.ExportFailure(code=found.error_code, message=found.error_message or "")
        if found.error_code is not None and found.state is ExportState.FAILED
        else None,
        created_at=found.created_at,
        started_at=found.started_at,
        finished_at=found.finished_at,
        links=links,
    )


def file(stored: StoredFile) -> File:
    """A file in OpenAI's form."""
    status = "uploaded" if stored.status == "pending" else stored.status
    return File(
        id=show_file(stored.file_id),
        bytes=stored.size,
        created_at=int(stored.created_at.timestamp()),
        filename=stored.filename,
        purpose=stored.purpose,
        status=status,
        expires_at=None if stored.expires_at is None else int(stored.expires_at.timestamp()),
        status_details="waiting for its bytes" if stored.status == "pending" else None,
    )


def _page(page: int | None) -> int | None:
    return None if page is None else page + 1


def _failure(view: ItemView | ResultView) -> schema.Failure | None:
    if view.error_code is None or view.state is not ItemState.FAILED:
        return None
    return schema.Failure(code=view.error_code, message=view.error_message or "")


def shown_source(source: dict[str, Any]) -> dict[str, Any]:
    """The source as it was sent, with long lists shortened, for it is part of every poll."""
    match source.get("type"):
        case "media":
            entries = [_medium(entry) for entry in source["media"][:_SHOWN]]
            return {"type": "media", "media": entries, "count": len(source["media"])}
        case "files":
            ids = [show_url(f"upload:{entry}") for entry in source["file_ids"][:_SHOWN]]
            return {"type": "files", "file_ids": ids, "count": len(source["file_ids"])}
        case "batch":
            return {"type": "batch", "file_id": show_url(source["url"]), "count": source["lines"]}
        case "manifest" if "inline" in source:
            text = source["inline"]
            return {**source, "inline": text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}…"}
        case "manifest" if str(source.get("url", "")).startswith("upload:"):
            return {"type": "manifest", "file_id": show_url(source["url"]), "format": source["format"]}
    return source


def _medium(entry: dict[str, Any]) -> dict[str, Any]:
    url = entry["url"]
    shown = {"file_id": show_url(url)} if url.startswith("upload:") else {"url": url}
    return {**shown, **{name: value for name, value in entry.items() if name != "url"}}
