"""One training run: network, heads and optimisers of a rank, its place on disk, and what survives a restart."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLForConditionalGeneration

from deploy.demo.layout import Shape
from tests.demo_model.heads import ClipHeads, VisionHeads
from tests.demo_model.network import new_network
from tests.demo_model.optimise import Optimiser, split


def default_folder() -> Path:
    """Return where runs are kept unless told otherwise: outside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "batchsight" / "demo_model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does. Minutes are of training time: a restart goes on where the last save was."""

    folder: Path
    seed: int = 20260
    ranks: int = 2
    vision_minutes: float = 40.0
    joint_minutes: float = 75.0
    vision_difficulty: float = 0.75
    joint_difficulty: float = 0.85
    adam_rate: float = 1e-3
    muon_rate: float = 0.013
    save_seconds: float = 60.0
    device: str = "cpu"


@dataclasses.dataclass(kw_only=True)
class Progress:
    """How far a stage has come; `seconds` excludes downtime."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    difficulty: float = 0.0


class Run:
    """What one rank trains: the vision side in both stages, the text side in the joint stage."""

    def __init__(self, plan: Plan, *, rank: int) -> None:
        self.plan = plan
        self.rank = rank
        self.shape = Shape()
        self.device = torch.device(plan.device)
        self.network: InternVLForConditionalGeneration = new_network(self.shape, seed=plan.seed)
        torch.nn.Module.to(self.network, self.device)
        self.heads = VisionHeads(self.shape).to(self.device)
        tower = self.network.model.vision_tower
        matrices, others = split(tower)
        others += [*self.network.model.multi_modal_projector.parameters(), *self.heads.parameters()]
        self.vision = Optimiser(matrices, others)
        self.clip_heads = ClipHeads(self.shape).to(self.device)
        matrices, others = split(self.network.model.language_model)
        others += [*self.network.lm_head.parameters(), *self.clip_heads.parameters()]
        self.text = Optimiser(matrices, others)

    def path(self, name: str) -> Path:
        """Return a file of the run's folder."""
        return self.plan.folder / name

    def save(self, name: str, progress: Progress, parts: dict[str, Any]) -> None:
        """Write the state of this stage in one replacement; only rank 0 writes."""
        if self.rank == 0:
            state = {"progress": dataclasses.asdict(progress), **parts}
            torch.save(state, self.path(name + ".new"))
            self.path(name + ".new").replace(self.path(name))

    def load(self, name: str) -> tuple[Progress, dict[str, Any]] | None:
        """Return progress and state of a stage, or None where it has not begun."""
        if not self.path(name).exists():
            return None
        state = torch.load(self.path(name), map_location=self.device, weights_only=True)
        return Progress(**state.pop("progress")), state
