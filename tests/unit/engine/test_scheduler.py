from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.engine.core import EngineCore
from pipelines.engine.plan import StepPlan
from pipelines.engine.runner import Runner, Ticket
from pipelines.engine.scheduler import Limits, Scheduler
from pipelines.engine.sequence import Sequence
from pipelines.engine.types import EngineRequest, GenerationParams, Priority
from tests.unit.engine.conftest import tiles
from tests.unit.engine.harness import Bench, run, take

LIMITS = Limits(slots=8, pages=400, page_size=8, context=8192, max_rows=256, tile_budget=4, embedding_tiles=64)


class Recorder(Runner):
    """Remembers its plans."""

    def launch(self, plan: StepPlan) -> Ticket:
        self.plans: list[StepPlan]
        self.__dict__.setdefault("plans", []).append(plan)
        return super().launch(plan)


def made(bench: Bench, number: int, limits: Limits = LIMITS, **changes: object) -> Sequence:
    values: dict[str, object] = {
        "request_id": str(number),
        "question": "Read it",
        "system": "",
        "params": GenerationParams(max_new_tokens=12),
    }
    return bench.sequence(EngineRequest(**{**values, **changes}), number, limits)  # type: ignore[arg-type]


def plans(core: EngineCore) -> list[StepPlan]:
    assert isinstance(core.runner, Recorder)
    return core.runner.plans


def test_ten_questions_on_one_video_prefill_it_once(bench: Bench) -> None:
    video = tiles(*[1] * 16, seed=2)
    frames = "".join(f"Frame{n + 1}: <image>\n" for n in range(16))
    core = bench.core(replace(LIMITS, max_rows=40), runner=Recorder)
    sequences = [made(bench, n, question=f"{frames}What is number {n}?", media=video) for n in range(10)]
    run(core, sequences)
    shared = len(sequences[0].tokens) - 12 - 40
    rows = sum(plan.rows - plan.decodes for plan in plans(core))
    prompts = sum(each.prompt_length for each in sequences)
    assert rows < prompts - 9 * shared + 10 * LIMITS.page_size
    assert sum(len(item.pixels) for plan in plans(core) for item in plan.encode) == 16
    assert [each.cached_tokens > shared for each in sequences] == [False] + [True] * 9


def test_the_same_image_in_two_prompts_is_encoded_once(bench: Bench) -> None:
    core = bench.core(LIMITS, runner=Recorder)
    run(core, [made(bench, 0, question="A <image>", media=tiles(3, seed=1))])
    run(core, [made(bench, 1, question="B <image>", media=tiles(3, seed=1))])
    assert sum(len(plan.encode) for plan in plans(core)) == 1


def test_other_pixels_under_the_same_digest_are_not_confused(bench: Bench) -> None:
    right, wrong = tiles(2, seed=1), replace(tiles(2, seed=9), digests=tiles(2, seed=1).digests)
    core = bench.core(LIMITS)
    first, second = made(bench, 0, media=right), made(bench, 1, media=wrong)
    alone = made(bench, 2, media=tiles(2, seed=9))
    answers = run(core, [first, second])
    assert answers[second] == run(bench.core(LIMITS), [alone])[alone]
    assert second.images[0].key != first.images[0].key


def test_nothing_is_shared_between_salts(bench: Bench) -> None:
    core = bench.core(LIMITS)
    for number, salt in enumerate(("tenant-a", "tenant-b", "tenant-a")):
        sequence = made(bench, number, question="A long question. " * 6, token_salt=salt, media=tiles(2, seed=1))
        run(core, [sequence])
        assert (sequence.cached_tokens > 0) == (number == 2)


def test_a_step_never_passes_its_row_and_tile_budgets(bench: Bench) -> None:
    limits = replace(LIMITS, max_rows=20, tile_budget=3)
    core = bench.core(limits, runner=Recorder)
    run(core, [made(bench, n, question="word " * 9, media=tiles(5, seed=n)) for n in range(6)])
    assert max(plan.rows for plan in plans(core)) <= 20
    assert max(sum(len(item.pixels) for item in plan.encode) for plan in plans(core)) == 3
    mixed = [plan for plan in plans(core) if plan.decodes and plan.rows > plan.decodes]
    assert mixed, "prefill chunks and decoding rows share steps"


def test_tiles_of_several_requests_share_a_batch(bench: Bench) -> None:
    core = bench.core(LIMITS, runner=Recorder)
    run(core, [made(bench, n, media=tiles(1, seed=n)) for n in range(4)])
    assert len(plans(core)[0].encode) == 4


def order(core: EngineCore, sequences: list[Sequence]) -> list[int]:
    ends: dict[Sequence, list[int] | Exception] = {}
    for sequence in sequences:
        core.add(sequence)
    while core.busy:
        take(core, ends)
    return [sequence.number for sequence in ends]


def test_priority_goes_before_arrival(bench: Bench) -> None:
    core = bench.core(replace(LIMITS, slots=1))
    kinds = [Priority.BULK, Priority.NORMAL, Priority.INTERACTIVE, Priority.NORMAL]
    assert order(core, [made(bench, n, priority=kind) for n, kind in enumerate(kinds)]) == [2, 1, 3, 0]


def test_an_interactive_request_takes_the_place_of_a_bulk_one(bench: Bench) -> None:
    core = bench.core(replace(LIMITS, slots=2))
    bulk = [made(bench, n, priority=Priority.BULK, params=GenerationParams(max_new_tokens=60)) for n in range(2)]
    answers: dict[Sequence, list[int] | Exception] = {}
    for sequence in bulk:
        core.add(sequence)
    for _ in range(5):
        take(core, answers)
    urgent = made(bench, 9, priority=Priority.INTERACTIVE)
    core.add(urgent)
    take(core, answers)
    assert urgent in core.scheduler.running
    assert core.scheduler.preemptions == 1
    while core.busy:
        take(core, answers)
    assert next(iter(answers)) is urgent
    alone = [made(bench, 0, params=GenerationParams(max_new_tokens=60))]
    assert answers[bulk[1]] == run(bench.core(LIMITS), alone)[alone[0]]


def test_groups_take_turns(bench: Bench) -> None:
    """Twenty requests of one job stand before three of another; the three do not wait for the twenty."""
    core = bench.core(replace(LIMITS, slots=1))
    crowd = [made(bench, n, group="big") for n in range(20)]
    few = [made(bench, 100 + n, group="small") for n in range(3)]
    ends = order(core, crowd + few)
    assert max(ends.index(each.number) for each in few) <= 6


def test_groups_take_turns_when_many_slots_fill_at_once(bench: Bench) -> None:
    core = bench.core(replace(LIMITS, slots=8))
    for sequence in [made(bench, n, group="big") for n in range(20)] + [
        made(bench, 100 + n, group="small") for n in range(20)
    ]:
        core.add(sequence)
    core.step()
    groups = [each.group for each in core.scheduler.running]
    assert abs(groups.count("big") - groups.count("small")) <= 1


def test_sequences_are_sent_back_when_pages_run_out_and_their_answers_do_not_change(bench: Bench) -> None:
    limits = replace(LIMITS, pages=14, slots=6)
    core = bench.core(limits)
    sequences = [made(bench, n, limits, question=f"{n}", params=GenerationParams(max_new_tokens=60)) for n in range(5)]
    answers = run(core, sequences)
    assert core.scheduler.preemptions > 0
    for sequence in sequences:
        alone = made(bench, 0, question=f"{sequence.number}", params=GenerationParams(max_new_tokens=60))
        assert answers[sequence] == run(bench.core(LIMITS), [alone])[alone]


def test_a_cancelled_prefix_owner_does_not_stop_those_who_wait_for_it(bench: Bench) -> None:
    core = bench.core(replace(LIMITS, max_rows=10))
    sequences = [made(bench, n, question="The same long question. " * 4 + str(n)) for n in range(3)]
    for sequence in sequences:
        core.add(sequence)
    core.step()
    core.remove(sequences[0])
    answers: dict[Sequence, list[int] | Exception] = {}
    while core.busy:
        take(core, answers)
    assert set(answers) == set(sequences[1:])


def test_the_embedding_cache_is_bounded(bench: Bench) -> None:
    core = bench.core(replace(LIMITS, embedding_tiles=4))
    for number in range(6):
        run(core, [made(bench, number, media=tiles(2, seed=number))])
    run(core, [made(bench, 9)])
    assert len(core.runner.vision._embeddings) <= 2
    assert core.scheduler.ledger._tiles <= 4


def test_a_half_encoded_image_that_nobody_wants_any_more_is_dropped(bench: Bench) -> None:
    core = bench.core(replace(LIMITS, tile_budget=1))
    sequence = made(bench, 0, media=tiles(3, seed=0))
    core.add(sequence)
    core.step()
    core.remove(sequence)
    run(core, [made(bench, 1)])
    assert not core.runner.vision._embeddings
    assert not core.scheduler.ledger._encoding


def test_pages_keep_their_content_until_they_are_needed(bench: Bench) -> None:
    scheduler = Scheduler(replace(LIMITS, pages=6))
    pool = scheduler.pool
    pages = pool.allocate(3)
    keys = [bytes([n]) for n in range(3)]
    for page, key in zip(pages, keys, strict=True):
        pool.commit(page, key)
    pool.release(pages)
    assert pool.available == 6
    assert pool.match(keys) == pages
    pool.share(pages[:1])
    assert pool.available == 5
    assert len(pool.allocate(4)) == 4
    # The end of the prefix went first.
    assert pool.match(keys) == pages[:2]
    pool.allocate(1)
    assert pool.match(keys) == pages[:1]


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_steps_in_flight_change_nothing(bench: Bench, lookahead: int) -> None:
    sequences = [made(bench, n, question=f"{n} {'x' * n}", media=tiles(1 + n % 2, seed=n)) for n in range(5)]
    again = [made(bench, n, question=f"{n} {'x' * n}", media=tiles(1 + n % 2, seed=n)) for n in range(5)]
    ahead = run(bench.core(LIMITS, lookahead=lookahead), sequences)
    plain = run(bench.core(LIMITS), again)
    assert list(np.concatenate(list(ahead.values()))) == list(np.concatenate(list(plain.values())))
