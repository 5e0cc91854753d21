"""A result as clients get it: the line of the results' stream, which exports repeat."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipelines.control.query import ResultView
from pipelines.jobs.states import ItemState

SPENT = ("prompt_tokens", "cached_tokens", "completion_tokens", "tiles")


def line_of(view: ResultView, *, gpu_second_cost: float) -> dict[str, Any]:
    """The fields that have a value, ready for JSON. `page` is 1-based; `cost` at the rate for a device second."""
    succeeded = view.state is ItemState.SUCCEEDED
    fields: dict[str, Any] = {
        "object": "result",
        "job_id": str(view.job_id),
        "seq": view.seq,
        "document": view.doc,
        "name": view.name,
        "page": None if view.page is None else view.page + 1,
        "metadata": view.metadata,
        "state": view.state.value,
        "attempt": view.attempt,
        "text": view.text,
        "output": view.output,
        "flags": list(view.flags),
        "finish_reason": view.finish_reason,
        "media_hash": view.media_hash,
        "mean_logprob": view.mean_logprob,
        "usage": spent_of(view, gpu_second_cost=gpu_second_cost) if succeeded else None,
        "provenance": view.provenance,
        "error": error_of(view),
        "created_at": None if view.created_at is None else shown(view.created_at),
    }
    return {name: value for name, value in fields.items() if value is not None}


def spent_of(view: ResultView, *, gpu_second_cost: float) -> dict[str, Any]:
    """Counters, and what they cost."""
    seconds = view.device_seconds
    return {
        "prompt_tokens": view.prompt_tokens,
        "cached_tokens": view.cached_tokens,
        "completion_tokens": view.completion_tokens,
        "tiles": view.tiles,
        "device_seconds": round(seconds, 3),
        "cost": round(seconds * gpu_second_cost, 6),
    }


def error_of(view: ResultView) -> Mapping[str, str] | None:
    """Why a failed item failed."""
    if view.error_code is None or view.state is not ItemState.FAILED:
        return None
    return {"code": view.error_code, "message": view.error_message or ""}


def shown(at: datetime) -> str:
    """RFC 3339 in UTC."""
    return at.isoformat().replace("+00:00", "Z")
