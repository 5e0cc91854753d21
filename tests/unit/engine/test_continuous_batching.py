"""Continuous batching changes no answer: whatever else is going on, a request gets what it gets alone (in float64)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pipelines.engine.scheduler import Limits
from pipelines.engine.types import EngineRequest, GenerationParams, Priority, Tiles
from tests.unit.engine.conftest import tiles
from tests.unit.engine.harness import Bench, run, take

ROOMY = Limits(slots=1, pages=200, page_size=8, context=8192, max_rows=4096, tile_budget=64, embedding_tiles=64)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request of the property test; `step` is when it arrives, `cancel` after how many steps it is cancelled."""

    step: int
    words: int
    images: tuple[tuple[int, int], ...]  # (seed, tiles): equal seeds are the same image in several requests
    count: int
    params: GenerationParams
    priority: Priority
    group: str
    cancel: int | None


def _media(images: tuple[tuple[int, int], ...]) -> Tiles | None:
    if not images:
        return None
    parts = [tiles(count, seed=seed) for seed, count in images]
    return Tiles(
        pixels=np.concatenate([part.pixels for part in parts]),
        counts=tuple(part.counts[0] for part in parts),
        digests=tuple(part.digests[0] for part in parts),
    )


def _request(arrival: Arrival) -> EngineRequest:
    return EngineRequest(
        request_id="r",
        question="".join("<image>\n" for _ in arrival.images) + "Read it slowly. " * arrival.words + "Go",
        system="",
        media=_media(arrival.images),
        params=replace(arrival.params, max_new_tokens=arrival.count),
        priority=arrival.priority,
        group=arrival.group,
    )


_params = st.sampled_from(
    [
        GenerationParams(),
        GenerationParams(),
        GenerationParams(repetition_penalty=1.3),
        GenerationParams(do_sample=True, seed=11, top_k=20),
        GenerationParams(do_sample=True, seed=12, top_k=0, top_p=0.8, temperature=1.4, repetition_penalty=1.1),
    ]
)
_arrivals = st.builds(
    Arrival,
    step=st.integers(0, 25),
    words=st.integers(0, 3),
    images=st.lists(
        st.tuples(st.integers(0, 2), st.just(2)) | st.tuples(st.integers(3, 4), st.just(3)), max_size=3
    ).map(tuple),
    count=st.integers(1, 24),
    params=_params,
    priority=st.sampled_from(Priority),
    group=st.sampled_from(["a", "b"]),
    cancel=st.none() | st.integers(0, 12),
)
_limits = st.builds(
    Limits,
    slots=st.integers(1, 5),
    pages=st.integers(18, 40),
    page_size=st.sampled_from([4, 8]),
    context=st.just(8192),
    max_rows=st.integers(3, 60),
    tile_budget=st.integers(1, 4),
    embedding_tiles=st.integers(0, 6),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals=st.lists(_arrivals, min_size=1, max_size=9), limits=_limits, lookahead=st.integers(0, 2))
def test_every_answer_equals_the_answer_alone(
    bench: Bench, arrivals: list[Arrival], limits: Limits, lookahead: int
) -> None:
    core = bench.core(limits, lookahead=lookahead)
    sequences = []
    for number, arrival in enumerate(arrivals):
        limits_of = replace(limits, pages=10_000)  # admission is tested elsewhere; here everything must fit
        sequence = bench.sequence(_request(arrival), number, limits_of)
        if len(sequence.tokens) + arrival.count < limits.pages * limits.page_size:
            sequences.append((arrival, sequence))
    answers: dict[object, list[int] | Exception] = {}
    step = 0
    while core.busy or any(arrival.step >= step for arrival, _ in sequences):
        for arrival, sequence in sequences:
            if arrival.step == step:
                core.add(sequence)
            if arrival.cancel is not None and arrival.step + arrival.cancel == step:
                core.remove(sequence)
        take(core, answers)  # type: ignore[arg-type]
        step += 1
        assert step < 5_000
    for arrival, sequence in sequences:
        if sequence in answers:
            assert answers[sequence] == _alone(bench, arrival)
        else:
            assert arrival.cancel is not None
    # Seen with --hypothesis-show-statistics: that these examples do send back, share and wait.
    event(f"preemptions: {min(core.scheduler.preemptions, 2)}")
    event(f"shared prefixes: {any(sequence.cached_tokens for _, sequence in sequences)}")
    pool = core.scheduler.pool
    assert pool.used == 0
    assert sorted([*pool._free, *pool._idle]) == list(range(1, pool.total + 1))
    assert not core.scheduler._computing
    assert not core.scheduler.ledger._pins


_memory: dict[Arrival, list[int]] = {}


def _alone(bench: Bench, arrival: Arrival) -> list[int]:
    key = replace(arrival, step=0, cancel=None, group="", priority=Priority.NORMAL)
    if key not in _memory:
        core = bench.core(ROOMY)
        sequence = bench.sequence(_request(key), 0, ROOMY)
        answer = run(core, [sequence])[sequence]
        assert isinstance(answer, list)
        _memory[key] = answer
    return _memory[key]
