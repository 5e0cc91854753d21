"""How Python values become SQL ones: JSON that `jsonb` accepts, text without NUL, wake-up calls."""

from __future__ import annotations

import enum
import json
import math
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

DISPATCH_CHANNEL = "batchsight_dispatch"
PROGRESS_CHANNEL = "batchsight_progress"

# One encoder for all: `json.dumps` with options of its own builds one at each call, half the cost of a small value.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

_NOTIFY = text("SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS payload")


class Wake(enum.StrEnum):
    """What the dispatcher is woken for: the payload on `DISPATCH_CHANNEL`, sent when the transaction commits."""

    PLAN = "plan"
    PAGINATE = "paginate"
    PREPARE = "prepare"
    INFER = "infer"
    ENDED = "ended"
    CANCEL = "cancel"
    EXPORT = "export"
    WEBHOOK = "webhook"


def wake(conn: Connection, *reasons: Wake) -> None:
    """Wake the dispatcher once this transaction has committed."""
    conn.execute(_NOTIFY, {"channel": DISPATCH_CHANNEL, "payloads": [str(reason) for reason in reasons]})


def announce_progress(conn: Connection, *job_ids: uuid.UUID) -> None:
    """Tell the api servers, once this transaction has committed, that these jobs have new snapshots."""
    conn.execute(_NOTIFY, {"channel": PROGRESS_CHANNEL, "payloads": [str(job_id) for job_id in job_ids]})


def clean_text(value: str) -> str:
    """`value` as PostgreSQL can store it: NUL and lone surrogates become U+FFFD."""
    if "\x00" in value:
        value = value.replace("\x00", "\ufffd")
    if value.isascii():
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_json(value: Any) -> str:
    """`value` as JSON text that `jsonb` accepts; NaN and infinities become null, text is cleaned."""
    try:
        encoded = _encode(value)
    except ValueError:
        encoded = None
    if encoded is not None and "\\u0000" not in encoded and clean_text(encoded) == encoded:
        return encoded
    return _encode(_clean(value))


def _clean(value: Any) -> Any:
    match value:
        case str():
            return clean_text(value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {clean_text(str(key)): _clean(item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
        case _:
            return value
