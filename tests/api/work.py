"""Does a job's work by hand, through the store alone: what workers would do, with answers the test chooses."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence

import numpy as np

from pipelines.blobs.base import BlobStore
from pipelines.jobs.models import ClaimedItem, ItemResult, MediaRef, PackRef
from pipelines.jobs.outcomes import Failed, Outcome, Prepared, Succeeded
from pipelines.media.pack import TilePack, encode
from pipelines.store import documents, items, jobs, progress
from pipelines.store.jobs import FailedAtPlan, NeedsPaging, PlannedDocument, Single
from pipelines.store.session import Database

LEASE = 60.0
MISSING = Failed(code="media_not_found", message="there is no such object")


class HandWorker:
    """Plans, prepares and answers one job."""

    def __init__(self, database: Database, job_id: str, blobs: BlobStore | None = None) -> None:
        self._database = database
        self.job_id = uuid.UUID(job_id)
        self._blobs = blobs
        self._prepared: set[int] = set()

    def plan(self, names: Sequence[str | tuple[str, int]], *, broken: Sequence[str] = ()) -> None:
        """Documents: a name is one item, a (name, pages) pair so many; `broken` names fail while they are planned."""
        planned = [
            PlannedDocument(
                name=name if isinstance(name, str) else name[0],
                media=(MediaRef(url=f"s3://scans/{name if isinstance(name, str) else name[0]}"),),
                metadata={"of": name if isinstance(name, str) else name[0]},
                items=Single() if isinstance(name, str) else NeedsPaging(),
            )
            for name in names
        ] + [
            PlannedDocument(name=name, media=(), items=FailedAtPlan(code="corrupt_media", message="not a picture"))
            for name in broken
        ]
        with self._database.begin() as conn:
            lease = jobs.claim_plan(conn, self.job_id, worker="hand", lease=LEASE)
            assert lease is not None
            assert jobs.append_plan(conn, lease, documents=planned, cursor=None, done=True) is not None
        paged = [(number, name[1]) for number, name in enumerate(names) if not isinstance(name, str)]
        for number, pages in paged:
            with self._database.begin() as conn:
                (claimed,) = documents.claim_documents(conn, self.job_id, [number], worker="hand", lease=LEASE)
                assert documents.complete_document(conn, claimed, pages=pages, versions=(None,))
        self.fold()

    def prepare(self, seqs: Sequence[int]) -> None:
        """Give items a (real) tile pack."""
        pack = TilePack.of(np.full((3, 448, 448, 3), 128, np.uint8), (3,))
        data = encode(pack)
        reference = PackRef(key="packs/test/pack", sha256=hashlib.sha256(data).hexdigest(), size=len(data), tiles=3)
        if self._blobs is not None:
            self._blobs.put(reference.key, data)
        with self._database.begin() as conn:
            claimed = items.claim_prepare(conn, self.job_id, list(seqs), worker="hand", lease=LEASE)
            assert len(claimed) == len(seqs)
            items.complete(conn, [(item, Prepared(pack=reference, media_hash="m" * 64)) for item in claimed])
        self._prepared.update(seqs)

    def finish(self, answers: dict[int, str | Failed], *, tokens: int = 7) -> None:
        """End items with a text or a failure, then write the job's snapshot."""
        missing = [seq for seq in answers if seq not in self._prepared]
        if missing:
            self.prepare(missing)
        with self._database.begin() as conn:
            claimed = items.claim_infer(conn, [(self.job_id, seq) for seq in answers], worker="hand", lease=LEASE)
            assert len(claimed) == len(answers)
            entries = [(item, _outcome(item, answers[item.seq], tokens)) for item in claimed]
            assert len(items.complete(conn, entries)) == len(entries)
        self.fold()

    def fold(self) -> None:
        """What the leader does once a second."""
        with self._database.begin() as conn:
            progress.fold(conn)
        with self._database.begin() as conn:
            progress.finalise(conn, self.job_id)


def _outcome(item: ClaimedItem, answer: str | Failed, tokens: int) -> Outcome:
    if isinstance(answer, Failed):
        return answer
    return Succeeded(
        result=ItemResult(
            text=answer,
            output={"format": "text"},
            flags=(),
            finish_reason="stop",
            media_hash=item.media_hash or "",
            prompt_tokens=100,
            cached_tokens=0,
            completion_tokens=tokens,
            tiles=3,
            device_seconds=0.5,
            mean_logprob=-0.1,
            provenance={"model": "test", "attempt": item.attempt},
        )
    )
