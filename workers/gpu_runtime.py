"""One engine worker: as many threads as the engine has slots, one engine, one claimer, one committer.

infer(job, seq) → gate → claim (batched) → lease → step → complete (batched)
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import structlog

from pipelines.jobs.errors import ServiceUnavailable
from pipelines.jobs.models import ClaimedItem, JobSpec
from pipelines.jobs.outcomes import Cancelled, Failed, Outcome, Succeeded
from pipelines.jobs.retry import after_failure
from pipelines.steps.abort import Abort, AbortReason
from pipelines.steps.complete import complete
from pipelines.steps.infer import InferTools, OnText, infer
from pipelines.store import items, jobs
from pipelines.store.session import Database
from workers.batching import Batcher
from workers.leases import LeaseKeeper
from workers.solo import SoloGate
from workers.stream import StreamPublisher

_log = structlog.get_logger(__name__)

Claim = tuple[uuid.UUID, int]


@dataclass(frozen=True, kw_only=True)
class GpuRuntimeOptions:
    """Times in seconds."""

    worker: str
    lease_seconds: float
    heartbeat_seconds: float
    drain_seconds: float


class GpuRuntime:
    """Owns the engine of this process. Thread-safe; closed once."""

    def __init__(
        self, *, database: Database, tools: InferTools, streams: StreamPublisher | None, options: GpuRuntimeOptions
    ) -> None:
        self._database = database
        self._tools = tools
        self._streams = streams
        self._options = options
        self._gate = SoloGate()
        self._draining = threading.Event()
        self.leases = LeaseKeeper(self._beat, interval=options.heartbeat_seconds)
        self._claims: Batcher[Claim, ClaimedItem | None] = Batcher(self._claim, name="claims")
        self._completions: Batcher[tuple[ClaimedItem, Outcome], bool] = Batcher(self._complete, name="completions")
        self._spec = lru_cache(maxsize=1024)(self._load_spec)

    def infer(self, job_id: uuid.UUID, seq: int, *, solo: bool) -> None:
        """Claim the item and answer it. A message that comes twice, or late, claims nothing and ends here."""
        with self._gate.pass_through(solo=solo):
            if self._draining.is_set():
                self._forget_hint(job_id, seq)
                return
            item = self._claims.submit((job_id, seq)).result()
            if item is None:
                return
            with self.leases.hold((item.job_id, item.seq, item.attempt)) as abort:
                if self._draining.is_set():
                    abort.fire(AbortReason.SHUTDOWN)  # it began between the flag and the claim
                outcome, publish = self._answer(item, abort)
                stands = self._completions.submit((item, outcome)).result()
            if publish and self._streams is not None:
                ended = stands and isinstance(outcome, Succeeded | Failed | Cancelled)
                self._streams.finish(item.job_id, item.seq, item.attempt, ended=ended)

    @property
    def draining(self) -> bool:
        """True once nothing more is claimed."""
        return self._draining.is_set()

    def drain(self) -> None:
        """Stop claiming; after the grace time give back what still runs. Returns at once."""
        if self._draining.is_set():
            return
        self._draining.set()
        timer = threading.Timer(self._options.drain_seconds, self.leases.abort_all, args=(AbortReason.SHUTDOWN,))
        timer.daemon = True
        timer.start()

    def give_back(self) -> None:
        """The engine is dead: stop claiming and give back everything now."""
        self._draining.set()
        self.leases.abort_all(AbortReason.SHUTDOWN)

    def close(self) -> None:
        """Write what is waiting, stop the threads. The engine is closed by its owner."""
        self._draining.set()
        self._claims.close()
        self._completions.close()
        self.leases.close()
        if self._streams is not None:
            self._streams.close()
        self._database.close()

    def _answer(self, item: ClaimedItem, abort: Abort) -> tuple[Outcome, bool]:
        publish = False
        try:
            spec = self._spec(item.job_id)
            publish = self._streams is not None and bool(spec.parameters.get("stream"))
            return infer(item, spec, self._tools, abort=abort, on_text=self._on_text(item, publish=publish)), publish
        except BaseException as error:  # noqa: BLE001 - MemoryError and worse must free the slot with an outcome
            _log.exception("infer_raised", job_id=str(item.job_id), seq=item.seq, attempt=item.attempt)
            return after_failure(error, fails=item.fails, uniform=self._tools.uniform), publish

    def _on_text(self, item: ClaimedItem, *, publish: bool) -> OnText | None:
        if not publish or self._streams is None:
            return None
        return self._streams.writer(item.job_id, item.seq, item.attempt)

    def _forget_hint(self, job_id: uuid.UUID, seq: int) -> None:
        """The row stays claimable; without this the dispatcher would wait a minute before it sent another hint."""
        try:
            with self._database.begin() as conn:
                items.forget_hints(conn, [(job_id, seq)])
        except ServiceUnavailable as error:
            _log.warning("hint_not_forgotten", job_id=str(job_id), seq=seq, error=error.message)

    def _load_spec(self, job_id: uuid.UUID) -> JobSpec:
        with self._database.begin() as conn:
            spec = jobs.get_spec(conn, job_id)
        if spec is None:
            raise ServiceUnavailable("the job's row could not be read")
        return spec

    def _beat(self, held: Sequence[tuple[uuid.UUID, int, int]]) -> items.Beat:
        with self._database.begin() as conn:
            return items.heartbeat(conn, held, lease=self._options.lease_seconds)

    def _claim(self, keys: Sequence[Claim]) -> list[ClaimedItem | None]:
        with self._database.begin() as conn:
            claimed = items.claim_infer(conn, keys, worker=self._options.worker, lease=self._options.lease_seconds)
        by_key = {(item.job_id, item.seq): item for item in claimed}
        # The same message twice in one batch: the first to ask gets the item, the second nothing.
        return [by_key.pop(key, None) for key in keys]

    def _complete(self, entries: Sequence[tuple[ClaimedItem, Outcome]]) -> list[bool]:
        return complete(self._database, items, entries)


def run_on_engine_death(healthy: Callable[[], bool], on_death: Callable[[], None], *, interval: float = 1.0) -> None:
    """Watch the engine on a thread of its own; call `on_death` once when it can make no more progress."""

    def watch() -> None:
        stop = threading.Event()
        while healthy():
            stop.wait(interval)
        _log.error("engine_unhealthy")
        on_death()

    threading.Thread(target=watch, name="engine-watch", daemon=True).start()
