"""Any order of claims, beats, losses, cancels and (late) completions does exactly what a few lines of Python say.

The orders are drawn from published seeds, weighted so that items go far: Hypothesis' own stateful runs were tried, and
hardly ever claimed an item twice.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field, replace

import pytest

from pipelines.jobs.models import ClaimedItem
from pipelines.jobs.outcomes import Cancelled, Failed, Outcome, Released, Repair, Retry, Succeeded
from pipelines.jobs.states import ITEM_ARROWS, ITEM_TERMINAL, ItemState
from pipelines.store import items, progress, sweep
from pipelines.store.items import Key
from pipelines.store.session import Database
from tests.integration.store.guards import refuse_changes_of_terminal_rows
from tests.integration.store.world import World, key_of, prepared, result

ITEMS = 2
SEEDS = 15
STEPS = 50

OUTCOMES: dict[str, Outcome] = {
    "prepared": prepared(),
    "succeeded": Succeeded(result=result()),
    "retry": Retry(code="x", message="x", delay=0),
    "out of memory": Retry(code="worker_out_of_memory", message="x", delay=0),
    "repair": Repair(code="pack_damaged", message="x"),
    "failed": Failed(code="bad", message="x"),
    "cancelled": Cancelled(),
    "released": Released(reason="x"),
}


@dataclass
class Model:
    """One item, as RELIABILITY's rules have it."""

    state: ItemState = ItemState.PENDING
    attempt: int = 0
    losses: int = 0
    history: list[ItemState] = field(default_factory=lambda: [ItemState.PENDING])

    def to(self, state: ItemState) -> None:
        assert state in ITEM_ARROWS[self.state]
        self.state = state
        self.history.append(state)

    def complete(self, attempt: int, outcome: str) -> bool:
        """True where it is accepted."""
        if not self.state.leased or attempt != self.attempt:
            return False
        preparing = self.state is ItemState.PREPARING
        back = ItemState.PENDING if preparing else ItemState.READY
        match outcome:
            case "prepared" if preparing:
                self.to(ItemState.READY)
            case "succeeded" if not preparing:
                self.to(ItemState.SUCCEEDED)
            case "prepared" | "succeeded":
                return False
            case "failed":
                self.to(ItemState.FAILED)
            case "cancelled":
                self.to(ItemState.CANCELLED)
            case "repair":
                self.to(ItemState.PENDING)
            case "out of memory":
                self.to(back)
                self.losses = max(1, self.losses)
            case _:
                self.to(back)
        return True


class Promise:
    """A job, its model, and every claim ever made: live or lost, any of them may hand something in at any time."""

    def __init__(self, world: World, tenant: uuid.UUID, dice: random.Random) -> None:
        self.world = world
        self.dice = dice
        self.job = world.job(tenant, ITEMS)
        self.cancelled = False
        self.model = [Model() for _ in range(ITEMS)]
        self.held: list[ClaimedItem] = []

    def run(self, steps: int) -> None:
        """So many events, the rows compared with the model after each; then everything ends."""
        events = {
            self.claim: 40,
            self.complete: 35,
            self.beat: 6,
            self.every_lease_is_lost: 12,
            self.cancel: 1,
            self.sweep_cancelled: 6,
        }
        for event in self.dice.choices(list(events), list(events.values()), k=steps):
            event()
            self.the_rows_are_what_the_model_says()
        self.end()

    def claim(self) -> None:
        seq = self.dice.randrange(ITEMS)
        right, sent = self.dice.random() < 0.9, self.dice.random() < 0.8
        stage = "prepare" if (self.model[seq].state is ItemState.PENDING) == right else "infer"
        model = self.model[seq]
        if sent:
            self.world.rows(
                "UPDATE items SET enqueued_at = now() WHERE job_id = %(j)s AND seq = %(s)s"
                " AND state IN ('pending', 'ready') RETURNING 1",
                j=self.job,
                s=seq,
            )
        marked = self.marked(seq)
        take = self.world.claim if stage == "prepare" else self.world.claim_ready
        waiting = ItemState.PENDING if stage == "prepare" else ItemState.READY
        claimed = take(self.job, [seq])
        assert bool(claimed) == (model.state is waiting and not self.cancelled and (model.losses == 0 or marked))
        if claimed:
            model.attempt += 1
            model.to(ItemState.PREPARING if stage == "prepare" else ItemState.INFERRING)
            assert claimed[0].attempt == model.attempt
            assert claimed[0].losses == model.losses
            self.held.append(claimed[0])

    def marked(self, seq: int) -> bool:
        return self.world.item(self.job, seq).enqueued_at is not None

    def complete(self) -> None:
        if not self.held:
            return
        item = self.dice.choice(self.held[-4:])  # mostly recent ones: the lost and the living
        fitting = {ItemState.PREPARING: "prepared", ItemState.INFERRING: "succeeded"}.get(self.model[item.seq].state)
        outcome = fitting if fitting and self.dice.random() < 0.4 else self.dice.choice(sorted(OUTCOMES))
        accepted = self.world.complete((item, OUTCOMES[outcome]))
        assert accepted == ({key_of(item)} if self.model[item.seq].complete(item.attempt, outcome) else frozenset())

    def beat(self) -> None:
        if not self.held:
            return
        item = self.dice.choice(self.held[-4:])
        with self.world.database.begin() as conn:
            beat = items.heartbeat(conn, [key_of(item)], lease=60)
        model = self.model[item.seq]
        alive = model.state.leased and model.attempt == item.attempt
        assert beat.kept == ({key_of(item)} if alive else frozenset())
        assert beat.cancelled == (beat.kept if self.cancelled else frozenset())

    def every_lease_is_lost(self) -> None:
        self.world.rows(
            "UPDATE items SET lease_until = now() - interval '1 s' WHERE job_id = %(j)s AND lease_until IS NOT NULL"
            " RETURNING 1",
            j=self.job,
        )
        with self.world.database.begin() as conn:
            swept = {lost.seq for lost in sweep.expire_items(conn)}
        assert swept == {seq for seq, model in enumerate(self.model) if model.state.leased}
        for seq in swept:
            model = self.model[seq]
            model.losses += 1
            if self.cancelled:
                model.to(ItemState.CANCELLED)
            elif model.losses == 3:
                model.to(ItemState.FAILED)
            else:
                model.to(ItemState.PENDING if model.state is ItemState.PREPARING else ItemState.READY)

    def cancel(self) -> None:
        if all(model.state.terminal for model in self.model):
            return
        self.cancelled = True
        self.world.rows("UPDATE jobs SET cancel_requested_at = now() WHERE id = %(j)s RETURNING 1", j=self.job)

    def sweep_cancelled(self) -> None:
        if not self.cancelled:
            return
        with self.world.database.begin() as conn:
            sweep.cancel_waiting(conn, self.job)
        for model in self.model:
            if model.state in (ItemState.PENDING, ItemState.READY):
                model.to(ItemState.CANCELLED)

    def the_rows_are_what_the_model_says(self) -> None:
        rows = self.world.rows(
            "SELECT i.seq, i.state, i.attempt, i.losses, i.lease_until, r.attempt AS made_by, i.error_code"
            " FROM items i LEFT JOIN results r USING (job_id, seq) WHERE i.job_id = %(j)s ORDER BY seq",
            j=self.job,
        )
        for row, model in zip(rows, self.model, strict=True):
            assert (row.state, row.attempt, row.losses) == (model.state, model.attempt, model.losses)
            assert (row.lease_until is not None) == model.state.leased
            assert row.made_by == (row.attempt if model.state is ItemState.SUCCEEDED else None)
            assert (row.error_code == "worker_lost") == (model.losses == 3 and model.state is ItemState.FAILED)

    def end(self) -> None:
        """Cancel and sweep until everything has ended; the job must end then."""
        self.every_lease_is_lost()
        self.cancel()
        self.sweep_cancelled()
        with self.world.database.begin() as conn:
            progress.fold(conn)
            ended = progress.finalise(conn, self.job)
        assert ended is not None
        assert ended.terminal


@pytest.fixture
def guarded(database: Database) -> World:
    refuse_changes_of_terminal_rows(database)
    return World(database)


def run(world: World, seed: int) -> Promise:
    promise = Promise(world, world.tenant(), random.Random(seed))
    promise.run(STEPS)
    return promise


def run_all(world: World) -> list[Promise]:
    return [run(world, seed) for seed in range(SEEDS)]


def test_every_order_of_events_keeps_the_promise(guarded: World) -> None:
    models = [model for promise in run_all(guarded) for model in promise.model]
    # The runs went where they should: far, and to every end.
    assert max(model.attempt for model in models) >= 5
    assert {model.losses for model in models} == {0, 1, 2, 3}
    assert {model.state for model in models} == ITEM_TERMINAL


class Unfenced(World):
    """Fencing removed: whoever hands something in speaks for the present attempt."""

    def complete(self, *entries: tuple[ClaimedItem, Outcome]) -> frozenset[Key]:
        current = [replace(item, attempt=self.item(item.job_id, item.seq).attempt) for item, _ in entries]
        written = super().complete(*((item, outcome) for item, (_, outcome) in zip(current, entries, strict=True)))
        return frozenset(key_of(item) for item, _ in entries) if written else frozenset()


def test_without_fencing_the_promise_breaks(guarded: World) -> None:
    unfenced = Unfenced(guarded.database)
    with pytest.raises(AssertionError):
        run_all(unfenced)
