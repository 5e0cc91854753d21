"""One training run: network, heads and optimisers of a rank, its place on disk, and what survives a restart."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from transformers import InternVLForConditionalGeneration

from deploy.demo.layout import Shape
from tests.demo_model.export import Tensors, read_checkpoint
from tests.demo_model.heads import ClipHeads, VisionHeads
from tests.demo_model.network import new_network
from tests.demo_model.optimise import Optimiser, split


def default_folder() -> Path:
    """Return where runs are kept unless told otherwise: outside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "batchsight" / "demo_model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does. Minutes are of processor time, each rank's: a restart goes on where the last save was."""

    folder: Path
    start: Path | None = None  # a checkpoint folder whose weights the run begins with
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
    """How far a stage has come; `seconds` are of rank 0's processor, so that a busy machine ends no stage early."""

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
        if plan.start:
            self.network.load_state_dict(read_checkpoint(plan.start, self.shape))
        torch.nn.Module.to(self.network, self.device)
        self.heads = VisionHeads(self.shape).to(self.device)
        tower = self.network.model.vision_tower
        matrices, others = split(tower)
        others += self.network.model.multi_modal_projector.parameters()
        self.vision = Optimiser(matrices, others)
        self.clip_heads = ClipHeads(self.shape).to(self.device)
        matrices, others = split(self.network.model.language_model)
        others += self.network.lm_head.parameters()
        self.text = Optimiser(matrices, others)
        self.labels = Optimiser([], [*self.heads.parameters(), *self.clip_heads.parameters()])

    def native(self) -> Tensors:
        """Return the float32 masters of the network's weights in native names."""
        masters = self.vision.masters() | self.text.masters()
        return {name: masters[id(parameter)] for name, parameter in self.network.named_parameters()}

    def path(self, name: str) -> Path:
        """Return a file of the run's folder."""
        return self.plan.folder / name

    def save(self, name: str, progress: Progress) -> None:
        """Write the run's state in one replacement; only rank 0 writes."""
        if self.rank == 0:
            parts = {"vision": self.vision.state(), "text": self.text.state(), "labels": self.labels.state()}
            state = {"progress": dataclasses.asdict(progress), **parts}
            torch.save(state, self.path(name + ".new"))
            self.path(name + ".new").replace(self.path(name))

    def load(self, name: str) -> Progress | None:
        """Go on from a save and return how far it had come, or None where there is none."""
        if not self.path(name).exists():
            return None
        state = torch.load(self.path(name), map_location=self.device, weights_only=True)
        self.vision.restore(state["vision"])
        self.text.restore(state["text"])
        self.labels.restore(state["labels"])
        return Progress(**state["progress"])


def trained_weights(plan: Plan) -> tuple[Tensors, Shape, dict[str, float]]:
    """Return the float32 masters of a run's last save in native names, the shape, and how far it had come."""
    run = Run(plan, rank=0)
    progress = run.load("joint.pt")
    if progress is None:
        raise FileNotFoundError(f"{run.path('joint.pt')}: the joint stage has not begun")
    return run.native(), run.shape, {"step": progress.step, "samples": progress.samples, "seconds": progress.seconds}
