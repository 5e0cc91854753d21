"""The training loop of both stages, over data-parallel ranks that share the gradient through gloo."""

from __future__ import annotations

import json
import random
import socket
import time
from collections import defaultdict

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from tests.demo_model.heads import Stats
from tests.demo_model.joint_stage import VISION_SHARE, joint_step, samples_of, task_of
from tests.demo_model.run import Plan, Progress, Run
from tests.demo_model.vision_stage import PAGES, SCENES, vision_step

VISION_THRESHOLD, JOINT_THRESHOLD = 0.7, 0.88  # accuracy a patch at which pages get harder
JOINT_HOLD = 0.6  # share of the joint stage at the full rate
WAKING = 80  # steps of a warm start in which only the temporary heads learn
WARM_RATE = 1.0  # of the rate at the begin of a warm start, from which it falls all the way
VISION_RATE = 0.6  # of the rate, in the joint stage: the tower goes on from where its own stage ended


class Ledger:
    """Means of what the steps measured since the last line, written as JSON lines and printed."""

    def __init__(self, run: Run, stage: str) -> None:
        self._run, self._stage = run, stage
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, stats: Stats) -> None:
        """Count one step's figures."""
        for name, value in stats.items():
            self._sums[name] += value
            self._counts[name] += 1

    def line(self, progress: Progress, rate: float) -> None:
        """Write the means and start afresh."""
        means = {name: round(total / self._counts[name], 4) for name, total in sorted(self._sums.items())}
        entry = {
            "stage": self._stage,
            "step": progress.step,
            "samples": progress.samples,
            "seconds": round(progress.seconds),
            "difficulty": round(progress.difficulty, 2),
            "rate": round(rate, 4),
            **means,
        }
        with self._run.path("log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
        self._sums.clear()
        self._counts.clear()


def _agree(run: Run, *values: float) -> list[float]:
    """Return rank 0's values on every rank."""
    shared = torch.tensor(values, dtype=torch.float64)
    if distributed.is_initialized():
        distributed.broadcast(shared, 0)
    return [float(value) for value in shared]


def _ramp(progress: Progress, recent: list[float], threshold: float) -> None:
    """Raise the difficulty a little when the last steps read well enough."""
    if len(recent) >= 15:
        if sum(recent) / len(recent) > threshold:
            progress.difficulty = min(1.0, progress.difficulty + 0.02)
        recent.clear()


def _vision_rate(done: float) -> float:
    """Hold, then fall to four tenths: the joint stage goes on from there."""
    return 1.0 if done < 0.7 else 1.0 - 0.6 * (done - 0.7) / 0.3


def train_vision(run: Run) -> float:
    """Run stage one to its end, from its last save if there is one; the difficulty that it reached."""
    plan, progress = run.plan, Progress()
    if stored := run.load("vision.pt"):
        progress = stored
        progress.difficulty = min(progress.difficulty, plan.vision_difficulty)
    elif plan.start:
        progress.difficulty = plan.vision_difficulty
    ledger, recent = Ledger(run, "vision"), list[float]()
    last, saved = time.process_time(), time.monotonic()
    started = progress.step
    while progress.seconds < plan.vision_minutes * 60:
        torch.manual_seed(plan.seed + 7 * progress.step + run.rank)
        draw = random.Random(f"{plan.seed} vision {run.rank} {progress.step}")
        waking = plan.start is not None and progress.step < WAKING
        run.network.requires_grad_(not waking)
        stats = vision_step(run, draw, difficulty=progress.difficulty)
        rate = _vision_rate(progress.seconds / (plan.vision_minutes * 60))
        rate *= min(1.0, (progress.step - started + 1) / 30)
        if not waking:
            stats["norm"] = run.vision.step(plan.adam_rate * rate, plan.muon_rate * rate)
        run.labels.step(plan.adam_rate * rate, 0.0)
        ledger.add(stats)
        recent.append(stats["patch"])
        if progress.difficulty < plan.vision_difficulty:
            _ramp(progress, recent, VISION_THRESHOLD)
        now = time.process_time()
        progress.step += 1
        progress.samples += (PAGES + SCENES) * plan.ranks
        progress.seconds, progress.difficulty = _agree(run, progress.seconds + now - last, progress.difficulty)
        last = now
        if run.rank == 0 and progress.step % 100 == 0:
            ledger.line(progress, rate)
        if time.monotonic() - saved > plan.save_seconds:
            run.save("vision.pt", progress)
            saved = time.monotonic()
    run.save("vision.pt", progress)
    return progress.difficulty


def _joint_rate(step: int, done: float) -> float:
    """Warm up, hold, then fall to zero over the last half: much of the gain comes there."""
    return min(1.0, (step + 1) / 100) * (1.0 if done < JOINT_HOLD else (1.0 - done) / (1.0 - JOINT_HOLD))


def _warm_rate(step: int, done: float) -> float:
    """Warm up and fall to zero: the weights come from the end of such a fall, and a high rate shakes them loose."""
    return WARM_RATE * min(1.0, (step + 1) / 100) * (1.0 - done)


def reach_joint(run: Run) -> Progress:
    """Where stage two goes on: at its last save, or where stage one ends, which is then run first."""
    if stored := run.load("joint.pt"):
        stored.difficulty = min(stored.difficulty, run.plan.joint_difficulty)
        return stored
    # Every rank goes on with the weights it has: rank 0 may still be writing stage one's file when another would look.
    reached = train_vision(run)
    return Progress(difficulty=run.plan.joint_difficulty if run.plan.start else reached)


def train_joint(run: Run, progress: Progress) -> None:
    """Run stage two from `progress` to its end."""
    plan = run.plan
    ledger, recent = Ledger(run, "joint"), list[float]()
    last, saved = time.process_time(), time.monotonic()
    while progress.seconds < plan.joint_minutes * 60:
        torch.manual_seed(plan.seed + 7 * progress.step + run.rank)
        done = progress.seconds / (plan.joint_minutes * 60)
        stage = 1.0 if plan.start else done  # a network that has been through the first mixes needs them no more
        task, frames = task_of(random.Random(f"{plan.seed} task {run.rank} {progress.step}"), stage)
        waking = plan.start is not None and progress.step < WAKING
        learn = waking or random.Random(f"{plan.seed} tower {progress.step}").random() < VISION_SHARE
        draw = random.Random(f"{plan.seed} joint {run.rank} {progress.step}")
        # After a warm start only the temporary heads are new: the network stands still until their noise has gone.
        run.network.requires_grad_(not waking)
        stats = joint_step(run, draw, task, frames, difficulty=progress.difficulty, learn=learn)
        rate = _warm_rate(progress.step - WAKING, done) if plan.start else _joint_rate(progress.step, done)
        if learn and not waking:
            slow = VISION_RATE * rate
            run.vision.step(plan.adam_rate * slow, plan.muon_rate * slow)
        if not waking:
            stats["norm"] = run.text.step(plan.adam_rate * rate, plan.muon_rate * rate)
        run.labels.step(plan.adam_rate * (1.0 if waking else rate), 0.0)
        if "patch" in stats:
            recent.append(stats.pop("patch"))
        ledger.add(stats)
        if progress.difficulty < plan.joint_difficulty:
            _ramp(progress, recent, JOINT_THRESHOLD)
        now = time.process_time()
        progress.step += 1
        progress.samples += plan.ranks * samples_of(task, frames)
        progress.seconds, progress.difficulty = _agree(run, progress.seconds + now - last, progress.difficulty)
        last = now
        if run.rank == 0 and progress.step % 100 == 0:
            ledger.line(progress, rate)
        if time.monotonic() - saved > plan.save_seconds:
            run.save("joint.pt", progress)
            saved = time.monotonic()
    run.save("joint.pt", progress)


def _rank(rank: int, plan: Plan, port: int) -> None:
    torch.set_num_threads(1)
    if plan.ranks > 1:
        distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=plan.ranks)
    run = Run(plan, rank=rank)
    train_joint(run, reach_joint(run))
    if plan.ranks > 1:
        distributed.destroy_process_group()


def train(plan: Plan) -> None:
    """Train from nothing, or go on, with one process a rank."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if plan.ranks == 1:
        _rank(0, plan, port)
    else:
        spawn(_rank, (plan, port), nprocs=plan.ranks)  # type: ignore[no-untyped-call]  # torch's own
