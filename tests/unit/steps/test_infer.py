from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from pipelines.engine.fake import FakeEngine, FakeOptions
from pipelines.engine.types import EngineInfo, EngineRequest, EngineStats, Handle, OnText, Tiles
from pipelines.jobs.errors import PackDamaged
from pipelines.jobs.models import ClaimedItem, Document, JobPriority, JobSpec, PackRef
from pipelines.jobs.outcomes import Cancelled, Failed, Outcome, Released, Repair, Succeeded
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass, MediumView
from pipelines.steps.abort import Abort, AbortReason
from pipelines.steps.infer import InferTools, LoadedPack, PackLoader, infer

JOB, TENANT = uuid.UUID(int=1), uuid.UUID(int=2)


@dataclass
class Shelf:
    """Every pack holds `images` one-tile images, except those that are said to be damaged."""

    images: int = 1
    media_class: MediaClass = MediaClass.IMAGE
    damaged: bool = False

    def load(self, pack: PackRef) -> LoadedPack:
        if self.damaged:
            raise PackDamaged("gone")
        tiles = Tiles(
            pixels=np.zeros((self.images, 448, 448, 3), np.uint8),
            counts=(1,) * self.images,
            digests=tuple(f"{pack.key}-{index}" for index in range(self.images)),
        )
        return LoadedPack(media=tiles, views=(MediumView(media_class=self.media_class, images=self.images),))


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    yield fake
    fake.close()


def spec(kind: str, **parameters: Any) -> JobSpec:
    return JobSpec(
        job_id=JOB,
        tenant_id=TENANT,
        kind=kind,
        parameters=registry.get(kind).validate(parameters),
        source={},
        priority=JobPriority.NORMAL,
    )


def item(seq: int = 0, *, fails: int = 0) -> ClaimedItem:
    return ClaimedItem(
        job_id=JOB,
        seq=seq,
        attempt=3,
        losses=0,
        fails=fails,
        page=None,
        document=Document(job_id=JOB, doc=seq, name="x", media=()),
        pack=PackRef(key=f"p{seq}", sha256="s", size=1, tiles=1),
        media_hash=f"hash-of-{seq}",
    )


def tools(engine: Any, shelf: PackLoader | None = None, **more: Any) -> InferTools:
    return InferTools(
        engine=engine,
        packs=shelf or Shelf(),
        worker="w",
        preprocessing_version="1",
        uniform=lambda low, high: high,
        **more,
    )


def succeeded(outcome: Outcome) -> Succeeded:
    assert isinstance(outcome, Succeeded), outcome
    return outcome


def test_an_answer_carries_its_provenance(engine: FakeEngine) -> None:
    result = succeeded(infer(item(7), spec("ocr"), tools(engine), abort=Abort())).result
    assert "hash-of-7" in result.text
    assert result.media_hash == "hash-of-7"
    assert result.provenance["attempt"] == 3
    assert result.provenance["model"] == "fake"
    assert result.provenance["weights_hash"] == engine.info.weights_hash
    assert result.provenance["parameters"]["max_tiles"] == 12
    assert result.completion_tokens > 0


def test_every_question_on_a_video_is_answered_in_its_order(engine: FakeEngine) -> None:
    questions = [f"question {index}?" for index in range(10)]
    shelf = Shelf(images=4, media_class=MediaClass.VIDEO)
    result = succeeded(infer(item(), spec("video_qa", questions=questions), tools(engine, shelf), abort=Abort())).result
    answers = result.output["answers"]
    assert [pair["question"] for pair in answers] == questions
    assert len({pair["answer"] for pair in answers}) == 10


def test_a_conversation_feeds_each_answer_into_the_next_turn(engine: FakeEngine) -> None:
    shelf = Shelf(images=2, media_class=MediaClass.VIDEO)
    asked = {"questions": ["first?", "then?"]}
    alone = succeeded(infer(item(), spec("video_qa", **asked), tools(engine, shelf), abort=Abort())).result
    together = succeeded(
        infer(item(), spec("video_qa", **asked, mode="conversation"), tools(engine, shelf), abort=Abort())
    ).result
    first, then = (pair["answer"] for pair in together.output["answers"])
    assert first == alone.output["answers"][0]["answer"]
    assert then != alone.output["answers"][1]["answer"], "the second turn must see the first answer"


def test_a_documents_own_parameters_win(engine: FakeEngine) -> None:
    claimed = item()
    document = replace(claimed.document, overrides={"generation": {"max_new_tokens": 2}, "max_continuations": 0})
    result = succeeded(infer(replace(claimed, document=document), spec("ocr"), tools(engine), abort=Abort())).result
    assert result.completion_tokens == 2
    assert result.flags == ("truncated",)


def test_a_damaged_pack_sends_the_item_back_to_be_prepared(engine: FakeEngine) -> None:
    outcome = infer(item(fails=9), spec("ocr"), tools(engine, Shelf(damaged=True)), abort=Abort())
    assert isinstance(outcome, Repair)


def test_a_refused_request_fails_its_item_with_the_engines_code() -> None:
    small = FakeEngine(FakeOptions(context_length=100))
    outcome = infer(item(), spec("ocr"), tools(small), abort=Abort())
    small.close()
    assert isinstance(outcome, Failed)
    assert outcome.code == "prompt_too_long"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (AbortReason.CANCELLED, Cancelled()),
        (AbortReason.LEASE_LOST, Released(reason="lease_lost")),
        (AbortReason.SHUTDOWN, Released(reason="shutdown")),
    ],
)
def test_an_abort_stops_the_engine_and_ends_as_its_reason_says(reason: AbortReason, expected: Outcome) -> None:
    slow = FakeEngine(FakeOptions(seconds=60))
    abort = Abort()
    timer = threading.Timer(0.1, abort.fire, args=(reason,))
    timer.start()
    outcome = infer(item(), spec("ocr"), tools(slow), abort=abort)
    timer.join()
    slow.close()
    assert outcome == expected


def test_an_item_that_takes_too_long_fails_and_frees_its_slot() -> None:
    slow = FakeEngine(FakeOptions(seconds=60))
    outcome = infer(item(), spec("ocr"), tools(slow, item_seconds=0.1), abort=Abort())
    slow.close()
    assert isinstance(outcome, Failed)
    assert outcome.code == "item_timed_out"


def test_a_closing_engine_costs_the_item_a_retry_not_its_life() -> None:
    slow = FakeEngine(FakeOptions(seconds=60))
    timer = threading.Timer(0.1, slow.close)
    timer.start()
    outcome = infer(item(), spec("ocr"), tools(slow), abort=Abort())
    timer.join()
    assert not isinstance(outcome, Failed | Succeeded | Cancelled)


class Shuffling:
    """Wraps an engine and gives each request another request's answer."""

    def __init__(self, inner: FakeEngine) -> None:
        self._inner = inner

    @property
    def info(self) -> EngineInfo:
        return self._inner.info

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        return self._inner.submit(replace(request, media_hash="hash-of-another"), on_text=on_text)

    def stats(self) -> EngineStats:
        return self._inner.stats()

    def healthy(self) -> bool:
        return True

    def close(self, *, timeout: float = 30.0) -> None:
        self._inner.close(timeout=timeout)


def test_an_answer_about_another_medium_is_never_stored(engine: FakeEngine) -> None:
    outcome = infer(item(fails=9), spec("ocr"), tools(Shuffling(engine)), abort=Abort())
    assert isinstance(outcome, Failed)
    assert outcome.code == "internal_error"


def test_text_is_streamed_while_it_is_made(engine: FakeEngine) -> None:
    pieces: list[str] = []
    chat = spec("chat", messages=[{"role": "user", "content": "hello"}])
    result = succeeded(infer(item(), chat, tools(engine), abort=Abort(), on_text=pieces.append)).result
    assert "".join(pieces).strip() == result.text
    assert len(pieces) > 1


def test_completions_are_weighed_by_their_tokens(engine: FakeEngine) -> None:
    result = succeeded(infer(item(), spec("ocr"), tools(engine), abort=Abort())).result
    assert result.mean_logprob == pytest.approx(-0.1)
    assert isinstance(result.provenance["first_token_seconds"], float)
