"""Answers taken from a tenant's own earlier results, over real rows and an engine that counts what it is asked."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.engine.fake import FakeEngine
from pipelines.engine.types import EngineInfo, EngineRequest, Handle, OnText, Tiles
from pipelines.jobs.errors import StoreUnavailable
from pipelines.jobs.models import ClaimedItem, ItemResult, PackRef
from pipelines.jobs.outcomes import Succeeded
from pipelines.kinds.base import MediaClass, MediumView
from pipelines.steps.abort import Abort
from pipelines.steps.answers import Answers
from pipelines.steps.infer import InferTools, LoadedPack, infer
from pipelines.store import jobs
from pipelines.store.jobs import PlannedDocument
from tests.integration.store.world import LEASE, World, prepared

SCOPE = "1"


class CountingEngine(FakeEngine):
    """Counts its requests."""

    asked = 0
    weights = "w1"

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        self.asked += 1
        return super().submit(request, on_text=on_text)

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, weights_hash=self.weights)


class Shelf:
    """One picture of one tile, whatever the pack."""

    def load(self, pack: PackRef) -> LoadedPack:
        tiles = Tiles(pixels=np.zeros((1, 448, 448, 3), np.uint8), counts=(1,), digests=("d",))
        return LoadedPack(media=tiles, views=(MediumView(media_class=MediaClass.IMAGE),))


@pytest.fixture
def engine() -> Iterator[CountingEngine]:
    made = CountingEngine()
    yield made
    made.close()


@pytest.fixture
def tenant(world: World) -> uuid.UUID:
    return world.tenant()


def tools(world: World, engine: FakeEngine, *, scope: str = SCOPE, version: str = "1") -> InferTools:
    answers = Answers(world.database, scope=scope)
    return InferTools(engine=engine, packs=Shelf(), worker="w", preprocessing_version=version, answers=answers)


def ready(world: World, tenant: uuid.UUID, *, media: str = "hash", kind: str = "ocr", **parameters: Any) -> ClaimedItem:
    """An item of a job of its own, claimed to be answered."""
    job_id = world.submitted(tenant)
    world.rows(
        "UPDATE jobs SET kind = %(kind)s, parameters = CAST(%(parameters)s AS jsonb) WHERE id = %(id)s RETURNING 1",
        kind=kind,
        parameters=_json(parameters),
        id=job_id,
    )
    with world.database.begin() as conn:
        lease = jobs.claim_plan(conn, job_id, worker="p", lease=LEASE)
        assert lease is not None
        assert jobs.append_plan(conn, lease, documents=[PlannedDocument(name="x", media=())], cursor=None, done=True)
    world.complete(*((item, replace(prepared(), media_hash=media)) for item in world.claim(job_id, [0])))
    (item,) = world.claim_ready(job_id, [0])
    return item


def _json(value: Any) -> str:
    from pipelines.store.values import to_json

    return to_json(value)


def answered(world: World, item: ClaimedItem, using: InferTools) -> ItemResult:
    """Answered and stored, as a worker does it."""
    with world.database.begin() as conn:
        spec = jobs.get_spec(conn, item.job_id)
    assert spec is not None
    outcome = infer(item, spec, using, abort=Abort())
    assert isinstance(outcome, Succeeded), outcome
    assert len(world.complete((item, outcome))) == 1
    return outcome.result


def test_an_equal_item_is_answered_from_before_and_costs_nothing(
    world: World, engine: CountingEngine, tenant: uuid.UUID
) -> None:
    using = tools(world, engine)
    first = ready(world, tenant)
    original = answered(world, first, using)
    assert engine.asked == 1
    assert "cached" not in original.flags
    second = ready(world, tenant)
    copy = answered(world, second, using)
    assert engine.asked == 1
    for name in ("text", "output", "finish_reason", "mean_logprob", "media_hash"):
        assert getattr(copy, name) == getattr(original, name)
    assert copy.flags == (*original.flags, "cached")
    spent = (copy.prompt_tokens, copy.cached_tokens, copy.completion_tokens, copy.tiles, copy.device_seconds)
    assert spent == (0, 0, 0, 0, 0.0)
    assert copy.provenance["cached"] == {"job_id": str(first.job_id), "seq": 0, "attempt": first.attempt}
    assert copy.provenance["attempt"] == second.attempt
    assert copy.provenance["weights_hash"] == original.provenance["weights_hash"]
    assert world.item(second.job_id, 0).state == "succeeded"


@pytest.mark.parametrize(
    "changes",
    [
        {"media": "other"},
        {"max_tiles": 6},
        {"prompt": "Read it."},
        {"generation": {"max_new_tokens": 7}},
        {"kind": "caption"},
        {"cache": False},
    ],
)
def test_another_question_is_asked(
    world: World, engine: CountingEngine, tenant: uuid.UUID, changes: dict[str, Any]
) -> None:
    using = tools(world, engine)
    answered(world, ready(world, tenant), using)
    fresh = answered(world, ready(world, tenant, **changes), using)
    assert engine.asked == 2
    assert "cached" not in fresh.flags


def test_nobody_is_given_the_answer_of_another_tenant(world: World, engine: CountingEngine, tenant: uuid.UUID) -> None:
    using = tools(world, engine)
    answered(world, ready(world, tenant), using)
    answered(world, ready(world, world.tenant()), using)
    assert engine.asked == 2
    # Not even where the keys were made equal by force.
    world.rows('UPDATE results SET provenance = provenance || \'{"answer_key": "k"}\' RETURNING 1')
    with world.database.begin() as conn:
        from pipelines.store import answers

        assert answers.find(conn, world.tenant(), key="k", media_hash="hash") is None
        assert answers.find(conn, tenant, key="k", media_hash="other") is None
        assert answers.find(conn, tenant, key="k", media_hash="hash") is not None


def test_another_model_precision_release_or_preprocessing_is_asked_anew(
    world: World, engine: CountingEngine, tenant: uuid.UUID
) -> None:
    answered(world, ready(world, tenant), tools(world, engine))
    for using in (tools(world, engine, scope="2"), tools(world, engine, version="2")):
        assert "cached" not in answered(world, ready(world, tenant), using).flags
    other = CountingEngine()
    other.weights = "w2"
    assert "cached" not in answered(world, ready(world, tenant), tools(world, other)).flags
    assert (engine.asked, other.asked) == (3, 1)
    other.close()


def test_what_is_left_to_chance_is_asked_each_time_unless_its_seed_is_fixed(
    world: World, engine: CountingEngine, tenant: uuid.UUID
) -> None:
    using = tools(world, engine)
    for generation, asked in (({"do_sample": True}, 2), ({"do_sample": True, "seed": 5}, 3)):
        for _ in range(2):
            answered(world, ready(world, tenant, generation=generation), using)
        assert engine.asked == asked


def test_equal_items_at_the_same_time_are_both_answered(
    world: World, engine: CountingEngine, tenant: uuid.UUID
) -> None:
    using = tools(world, engine)
    items = [ready(world, tenant) for _ in range(6)]
    results: list[ItemResult] = []
    threads = [
        threading.Thread(target=lambda item=item: results.append(answered(world, item, using))) for item in items
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({result.text for result in results}) == 1
    assert len(results) == 6
    assert answered(world, ready(world, tenant), using).flags[-1] == "cached"


def test_an_answer_lives_as_long_as_its_result_and_no_longer(
    world: World, engine: CountingEngine, tenant: uuid.UUID
) -> None:
    using = tools(world, engine)
    first = ready(world, tenant)
    answered(world, first, using)
    answered(world, ready(world, tenant), using)  # a copy is no original: it does not keep the answer alive
    world.rows("DELETE FROM results WHERE job_id = %(job)s RETURNING 1", job=first.job_id)
    answered(world, ready(world, tenant), using)
    assert engine.asked == 2


def test_a_streamed_answer_is_made_while_its_client_reads(
    world: World, engine: CountingEngine, tenant: uuid.UUID
) -> None:
    using = tools(world, engine)
    answered(world, ready(world, tenant), using)
    item = ready(world, tenant)
    with world.database.begin() as conn:
        spec = jobs.get_spec(conn, item.job_id)
    assert spec is not None
    heard: list[str] = []
    infer(item, spec, using, abort=Abort(), on_text=heard.append)
    assert engine.asked == 2
    assert heard


def test_a_database_that_is_away_is_a_miss(engine: CountingEngine) -> None:
    class Away:
        def begin(self) -> Any:
            raise StoreUnavailable("away")

    assert Answers(Away(), scope=SCOPE).find(uuid.uuid4(), key="k", media_hash="m") is None


def test_the_lookup_reads_an_index(world: World, tenant: uuid.UUID) -> None:
    plan = world.rows(
        "EXPLAIN SELECT * FROM results WHERE tenant_id = %(t)s AND (provenance->>'answer_key') = 'k'"
        " AND media_hash = 'm' ORDER BY job_id, seq LIMIT 1",
        t=tenant,
    )
    text = "\n".join(row[0] for row in plan)
    assert "answer_key" in text.split("Index Cond")[1]
    assert "Seq Scan" not in text
