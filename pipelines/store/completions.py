"""The fenced batch write: what a worker hands in, one statement a sort of outcome, state and result together.

Every statement locks its rows in key order first, names the state it leaves and the attempt it belongs to, and records
in the same statement how many items ended (`pipelines.store.deltas`). A row that does not match is left alone: its
lease was lost, and the writer is a zombie.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DataError

from pipelines.jobs.models import ClaimedItem
from pipelines.jobs.outcomes import Cancelled, Failed, Outcome, Prepared, Released, Repair, Retry, Succeeded
from pipelines.jobs.states import ItemState
from pipelines.store.deltas import ENDED
from pipelines.store.values import Wake, clean_text, to_json, wake

Key = tuple[uuid.UUID, int, int]
"""job, seq, attempt."""

SUSPECT_CODES = frozenset({"worker_out_of_memory", "engine_out_of_memory"})
"""Codes of the retry class `resource`: their one retry runs in the suspect lane, as if a lease had been lost."""

_log = structlog.get_logger(__name__)

_O = TypeVar("_O", bound=Outcome)
_Entries = Sequence[tuple[ClaimedItem, _O]]

_LOCK = """
locked AS (
    SELECT i.job_id, i.seq, i.attempt
    FROM entry JOIN items AS i ON i.job_id = entry.job_id AND i.seq = entry.seq
    WHERE i.attempt = entry.attempt AND i.state {states}
    ORDER BY i.job_id, i.seq
    FOR NO KEY UPDATE OF i
)
"""
_MINE = """
    FROM locked JOIN entry USING (job_id, seq, attempt)
    WHERE i.job_id = locked.job_id AND i.seq = locked.seq AND i.attempt = locked.attempt AND i.state {states}
"""


def _fenced(sql: str, states: str) -> TextClause:
    return text(sql.replace("{lock}", _LOCK).replace("{mine}", _MINE).replace("{states}", states))


# Item, result and count: one statement, so that none is ever without the others.
_SUCCEED = _fenced(
    """
WITH entry AS (
    SELECT * FROM unnest(
        CAST(:job_ids AS uuid[]), CAST(:seqs AS bigint[]), CAST(:attempts AS int[]), CAST(:texts AS text[]),
        CAST(:outputs AS text[]), CAST(:flags AS text[]), CAST(:finish_reasons AS text[]),
        CAST(:media_hashes AS text[]), CAST(:prompt_tokens AS int[]), CAST(:cached_tokens AS int[]),
        CAST(:completion_tokens AS int[]), CAST(:tiles AS int[]), CAST(:device_seconds AS float8[]),
        CAST(:mean_logprobs AS float8[]), CAST(:provenances AS text[])
    ) AS e(job_id, seq, attempt, text, output, flags, finish_reason, media_hash, prompt_tokens, cached_tokens,
           completion_tokens, tiles, device_seconds, mean_logprob, provenance)
),
{lock},
done AS (
    UPDATE items AS i SET state = 'succeeded', finished_at = now(), lease_until = NULL,
        error_code = NULL, error_message = NULL
    {mine}
    RETURNING i.job_id, i.seq, i.attempt, i.tenant_id
),
stored AS (
    INSERT INTO results (job_id, seq, tenant_id, attempt, text, output, flags, finish_reason, media_hash,
        prompt_tokens, cached_tokens, completion_tokens, tiles, device_seconds, mean_logprob, provenance)
    SELECT job_id, seq, done.tenant_id, attempt, entry.text, CAST(entry.output AS jsonb),
        ARRAY(SELECT jsonb_array_elements_text(CAST(entry.flags AS jsonb))), entry.finish_reason, entry.media_hash,
        entry.prompt_tokens, entry.cached_tokens, entry.completion_tokens, entry.tiles, entry.device_seconds,
        entry.mean_logprob, CAST(entry.provenance AS jsonb)
    FROM done JOIN entry USING (job_id, seq, attempt)
),
counted AS (
    INSERT INTO job_deltas (job_id, succeeded, prompt_tokens, cached_tokens, completion_tokens, tiles, device_seconds)
    SELECT job_id, count(*), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(tiles),
        sum(device_seconds)
    FROM done JOIN entry USING (job_id, seq, attempt)
    GROUP BY job_id
)
SELECT job_id, seq, attempt FROM done
""",
    "= 'inferring'",
)

# A stage passed: failures of the next one are counted from zero.
_PREPARED = _fenced(
    """
WITH entry AS (
    SELECT * FROM unnest(
        CAST(:job_ids AS uuid[]), CAST(:seqs AS bigint[]), CAST(:attempts AS int[]), CAST(:pack_keys AS text[]),
        CAST(:pack_sha256s AS text[]), CAST(:pack_bytes AS bigint[]), CAST(:tiles AS int[]),
        CAST(:media_hashes AS text[])
    ) AS e(job_id, seq, attempt, pack_key, pack_sha256, pack_bytes, tiles, media_hash)
),
{lock}
UPDATE items AS i SET state = 'ready', lease_until = NULL, worker = NULL, available_at = now(), fails = 0,
    pack_key = entry.pack_key, pack_sha256 = entry.pack_sha256, pack_bytes = entry.pack_bytes, tiles = entry.tiles,
    media_hash = entry.media_hash, prepared_at = now(), error_code = NULL, error_message = NULL
{mine}
RETURNING i.job_id, i.seq, i.attempt
""",
    "= 'preparing'",
)

# One step back; a repair goes all the way, and forgets the pack that was damaged (not one made anew meanwhile).
_BACK = _fenced(
    """
WITH entry AS (
    SELECT * FROM unnest(
        CAST(:job_ids AS uuid[]), CAST(:seqs AS bigint[]), CAST(:attempts AS int[]), CAST(:delays AS float8[]),
        CAST(:counted AS int[]), CAST(:repairs AS boolean[]), CAST(:suspects AS boolean[]), CAST(:codes AS text[]),
        CAST(:messages AS text[])
    ) AS e(job_id, seq, attempt, delay, counted, repair, suspect, code, message)
),
{lock},
damaged AS (
    DELETE FROM packs USING entry JOIN locked USING (job_id, seq, attempt) JOIN items AS i USING (job_id, seq)
    WHERE entry.repair AND packs.key = i.pack_key AND packs.sha256 = i.pack_sha256
)
UPDATE items AS i SET state = CASE WHEN i.state = 'preparing' OR entry.repair THEN 'pending' ELSE 'ready' END,
    lease_until = NULL, worker = NULL, enqueued_at = NULL, available_at = now() + make_interval(secs => entry.delay),
    fails = i.fails + entry.counted, losses = CASE WHEN entry.suspect THEN greatest(i.losses, 1) ELSE i.losses END,
    error_code = coalesce(entry.code, i.error_code), error_message = coalesce(entry.message, i.error_message),
    pack_key = CASE WHEN entry.repair THEN NULL ELSE i.pack_key END,
    pack_sha256 = CASE WHEN entry.repair THEN NULL ELSE i.pack_sha256 END,
    pack_bytes = CASE WHEN entry.repair THEN NULL ELSE i.pack_bytes END,
    tiles = CASE WHEN entry.repair THEN NULL ELSE i.tiles END
{mine}
RETURNING i.job_id, i.seq, i.attempt
""",
    "IN ('preparing', 'inferring')",
)

_END = _fenced(
    """
WITH entry AS (
    SELECT * FROM unnest(
        CAST(:job_ids AS uuid[]), CAST(:seqs AS bigint[]), CAST(:attempts AS int[]), CAST(:states AS text[]),
        CAST(:codes AS text[]), CAST(:messages AS text[])
    ) AS e(job_id, seq, attempt, new_state, code, message)
),
{lock},
ended AS (
    UPDATE items AS i SET state = entry.new_state, finished_at = now(), lease_until = NULL,
        error_code = entry.code, error_message = entry.message
    {mine}
    RETURNING i.job_id, i.seq, i.attempt, i.state, i.error_code
),
{counted}
SELECT job_id, seq, attempt FROM ended
""".replace("{counted}", ENDED),
    "IN ('preparing', 'inferring')",
)

# The versions that were really read, where the plan knew none: the first page to be prepared pins them for all.
_PIN = text("""
WITH entry AS (
    SELECT * FROM unnest(CAST(:job_ids AS uuid[]), CAST(:docs AS bigint[]), CAST(:versions AS text[]))
        AS e(job_id, doc, versions)
),
locked AS (
    SELECT d.job_id, d.doc FROM entry JOIN documents AS d ON d.job_id = entry.job_id AND d.doc = entry.doc
    ORDER BY d.job_id, d.doc
    FOR NO KEY UPDATE OF d
)
UPDATE documents AS d SET media = (
    SELECT jsonb_agg(
        CASE WHEN medium->>'version' IS NULL
            THEN medium || jsonb_build_object('version', CAST(entry.versions AS jsonb)->(CAST(n AS int) - 1))
            ELSE medium END
        ORDER BY n)
    FROM jsonb_array_elements(d.media) WITH ORDINALITY AS m(medium, n)
)
FROM locked JOIN entry USING (job_id, doc)
WHERE d.job_id = locked.job_id AND d.doc = locked.doc
""")


def write_outcomes(conn: Connection, entries: Sequence[tuple[ClaimedItem, Outcome]]) -> frozenset[Key]:
    """Write every outcome that is still its writer's to make; the keys that were accepted."""
    sorted_out: dict[Callable[..., set[Key]], list[tuple[ClaimedItem, Any]]] = {}
    once = {_key(item): (item, outcome) for item, outcome in reversed(entries)}  # an item handed in twice: the first
    for item, outcome in once.values():
        match outcome:
            case Succeeded():
                writer: Callable[..., set[Key]] = _succeed
            case Prepared():
                writer = _prepared
            case Retry() | Repair() | Released():
                writer = _back
            case Failed() | Cancelled():
                writer = _end
        sorted_out.setdefault(writer, []).append((item, outcome))
    accepted: set[Key] = set()
    for writer, mine in sorted_out.items():
        accepted |= writer(conn, mine)
    return frozenset(accepted)


def _succeed(conn: Connection, entries: _Entries[Succeeded]) -> set[Key]:
    try:
        with conn.begin_nested():  # a value that the database refuses must not take its neighbours along
            accepted = _run(conn, _SUCCEED, _results(entries))
    except DataError as error:
        if len(entries) == 1:
            _log.exception("result_refused_by_database", job_id=str(entries[0][0].job_id), seq=entries[0][0].seq)
            refused = Failed(code="internal_error", message="the result could not be stored; it has been logged")
            return _end(conn, [(entries[0][0], refused)])
        _log.warning("results_written_singly", entries=len(entries), error=type(error.orig).__name__)
        accepted = set()
        for entry in entries:
            accepted |= _succeed(conn, [entry])
    if accepted:
        wake(conn, Wake.ENDED)
    return accepted


def _results(entries: _Entries[Succeeded]) -> Mapping[str, Any]:
    results = [outcome.result for _, outcome in entries]
    return {
        **_keys(entries),
        "texts": [clean_text(result.text) for result in results],
        "outputs": [to_json(result.output) for result in results],
        "flags": [to_json(result.flags) for result in results],
        "finish_reasons": [result.finish_reason for result in results],
        "media_hashes": [result.media_hash for result in results],
        "prompt_tokens": [result.prompt_tokens for result in results],
        "cached_tokens": [result.cached_tokens for result in results],
        "completion_tokens": [result.completion_tokens for result in results],
        "tiles": [result.tiles for result in results],
        "device_seconds": [result.device_seconds for result in results],
        "mean_logprobs": [result.mean_logprob for result in results],
        "provenances": [to_json(result.provenance) for result in results],
    }


def _prepared(conn: Connection, entries: _Entries[Prepared]) -> set[Key]:
    packs = [outcome.pack for _, outcome in entries]
    values = {
        **_keys(entries),
        "pack_keys": [pack.key for pack in packs],
        "pack_sha256s": [pack.sha256 for pack in packs],
        "pack_bytes": [pack.size for pack in packs],
        "tiles": [pack.tiles for pack in packs],
        "media_hashes": [outcome.media_hash for _, outcome in entries],
    }
    accepted = _run(conn, _PREPARED, values)
    if accepted:
        _pin(conn, [(item, outcome) for item, outcome in entries if _key(item) in accepted])
        wake(conn, Wake.INFER)
    return accepted


def _pin(conn: Connection, entries: _Entries[Prepared]) -> None:
    versions: dict[tuple[uuid.UUID, int], tuple[str | None, ...]] = {}
    for item, outcome in entries:
        unknown = any(medium.version is None for medium in item.document.media)
        if unknown and any(version is not None for version in outcome.versions):
            versions.setdefault((item.job_id, item.document.doc), outcome.versions)
    if versions:
        values = {
            "job_ids": [job for job, _ in versions],
            "docs": [doc for _, doc in versions],
            "versions": [to_json(version) for version in versions.values()],
        }
        conn.execute(_PIN, values)


def _back(conn: Connection, entries: _Entries[Retry | Repair | Released]) -> set[Key]:
    outcomes = [outcome for _, outcome in entries]
    retries = [outcome if isinstance(outcome, Retry) else None for outcome in outcomes]
    told = [outcome if not isinstance(outcome, Released) else None for outcome in outcomes]
    values = {
        **_keys(entries),
        "delays": [outcome.delay if outcome else 0.0 for outcome in told],
        "counted": [int(retry.counted) if retry else 0 for retry in retries],
        "repairs": [isinstance(outcome, Repair) for outcome in outcomes],
        "suspects": [retry is not None and retry.code in SUSPECT_CODES for retry in retries],
        "codes": [outcome.code if outcome else None for outcome in told],
        "messages": [clean_text(outcome.message) if outcome else None for outcome in told],
    }
    accepted = _run(conn, _BACK, values)
    if accepted:
        wake(conn, Wake.PREPARE, Wake.INFER)
    return accepted


def _end(conn: Connection, entries: _Entries[Failed | Cancelled]) -> set[Key]:
    failed = [outcome if isinstance(outcome, Failed) else None for _, outcome in entries]
    values = {
        **_keys(entries),
        "states": [str(ItemState.FAILED if outcome else ItemState.CANCELLED) for outcome in failed],
        "codes": [outcome.code if outcome else None for outcome in failed],
        "messages": [clean_text(outcome.message) if outcome else None for outcome in failed],
    }
    accepted = _run(conn, _END, values)
    if accepted:
        wake(conn, Wake.ENDED)
    return accepted


def _run(conn: Connection, statement: TextClause, values: Mapping[str, Any]) -> set[Key]:
    return {(row.job_id, row.seq, row.attempt) for row in conn.execute(statement, values)}


def _key(item: ClaimedItem) -> Key:
    return (item.job_id, item.seq, item.attempt)


def _keys(entries: Sequence[tuple[ClaimedItem, Any]]) -> dict[str, list[Any]]:
    return {
        "job_ids": [item.job_id for item, _ in entries],
        "seqs": [item.seq for item, _ in entries],
        "attempts": [item.attempt for item, _ in entries],
    }
