"""The cache of answers: an equal question about an equal medium is answered by what the tenant was told before.

Equal means: the same tenant, the same pixels (the media hash is over what the model sees), the same model (the hash of
its weights, its precision, its attention, this release of the code), the very words that are asked, and the same
parameters; and decoding that has one answer: greedy, or sampling from a fixed seed.

It is looked up in INFER, when the pack lies in memory and before the engine is asked. Rejected: at the end of PREPARE,
which would spare a pack's way through the gpu queue, but there neither the loaded weights nor the words of the
question (they follow from what the pack holds) are known for certain, and an item would need an arrow past `ready`.
What is expensive, the engine, is spared alike: a hit takes no device time and no tokens, and is charged none.

A streamed chat is not answered from here: its client waits for text as it is made.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

import structlog

from pipelines.engine.types import EngineInfo
from pipelines.jobs.errors import ServiceUnavailable
from pipelines.jobs.models import ClaimedItem, ItemResult, JobSpec
from pipelines.kinds.base import Dialogue, KindParameters
from pipelines.steps.complete import Transactions
from pipelines.store import answers
from pipelines.store.answers import Answer

_log = structlog.get_logger(__name__)

CACHED = "cached"
"""The flag of a result that was taken from the cache."""

_SILENT = frozenset({"cache", "stream"})
"""Parameters that change how an item is handled, not what it is answered."""


class AnswerShelf(Protocol):
    """Where earlier answers are found. `scope` is part of every key: what else changes an answer, release included."""

    @property
    def scope(self) -> str:
        """Answers of another scope are never found."""

    def find(self, tenant_id: uuid.UUID, *, key: str, media_hash: str) -> Answer | None:
        """An earlier answer of this tenant, or None."""


class Answers:
    """Meets `AnswerShelf` over the tenant's results. A database that is away is a miss: the engine is asked."""

    def __init__(self, transactions: Transactions, *, scope: str) -> None:
        self._transactions = transactions
        self._scope = scope

    @property
    def scope(self) -> str:
        """See `AnswerShelf`."""
        return self._scope

    def find(self, tenant_id: uuid.UUID, *, key: str, media_hash: str) -> Answer | None:
        """See `AnswerShelf`."""
        try:
            with self._transactions.begin() as conn:
                return answers.find(conn, tenant_id, key=key, media_hash=media_hash)
        except ServiceUnavailable as error:
            _log.warning("answer_not_looked_up", error=error.message)
            return None


def key_of(
    item: ClaimedItem,
    spec: JobSpec,
    parameters: KindParameters,
    dialogue: Dialogue,
    info: EngineInfo,
    *,
    preprocessing_version: str,
    scope: str,
) -> str | None:
    """The name of an answer (hex), or None where there is no such thing: switched off, or left to chance."""
    generation = parameters.generation
    if not parameters.cache or (generation.do_sample and generation.seed is None):
        return None
    chosen: Mapping[str, Any] = parameters.model_dump(mode="json", exclude=set(_SILENT))
    named = {
        "tenant": str(spec.tenant_id),
        "media": item.media_hash,
        "weights": info.weights_hash,
        "dtype": info.dtype,
        "attention": info.attention,
        "continues": info.continues,
        "preprocessing": preprocessing_version,
        "scope": scope,
        "kind": spec.kind,
        "parameters": chosen,
        "dialogue": asdict(dialogue),
    }
    canonical = json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def taken(found: Answer, item: ClaimedItem, *, worker: str) -> ItemResult:
    """The earlier answer as this item's result: said to be cached, with what it is a copy of, and nothing spent."""
    provenance = {name: value for name, value in found.provenance.items() if name != "answer_key"}
    provenance |= {
        "attempt": item.attempt,
        "worker": worker,
        "cached": {"job_id": str(found.job_id), "seq": found.seq, "attempt": found.attempt},
        "first_token_seconds": 0.0,
        "queue_seconds": 0.0,
        "tokens_saved": 0,
    }
    return ItemResult(
        text=found.text,
        output=found.output,
        flags=(*found.flags, CACHED),
        finish_reason=found.finish_reason,
        media_hash=item.media_hash or "",
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=0,
        tiles=0,
        device_seconds=0.0,
        mean_logprob=found.mean_logprob,
        provenance=provenance,
    )
