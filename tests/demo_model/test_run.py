"""Training runs: how they begin, and that what they save is what they go on with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import deploy.demo
from deploy.demo.documents import MONO, SANS
from deploy.demo.layout import Shape
from tests.demo_model import pages
from tests.demo_model.export import read_checkpoint, write_checkpoint
from tests.demo_model.run import Plan, Progress, Run, trained_weights
from tests.demo_model.train import train

CHECKPOINT = Path(deploy.demo.__file__).parent / "checkpoint"
MOMENT = 0.001  # minutes: one step


@pytest.fixture(autouse=True)
def bundled_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faces that come with the project: a machine that only runs the tests need not have the training's others."""
    monkeypatch.setattr(pages, "FACES", (SANS, MONO))


@pytest.fixture
def warm(tmp_path: Path) -> Plan:
    return Plan(folder=tmp_path / "run", start=CHECKPOINT, ranks=1, vision_minutes=0, joint_minutes=MOMENT)


def _differing(run: Run, stored: dict[str, torch.Tensor]) -> set[str]:
    native = run.native()
    assert native.keys() == stored.keys()
    return {name for name in native if not torch.equal(native[name], stored[name])}


def test_a_warm_start_has_the_checkpoints_weights_to_the_bit(warm: Plan, tmp_path: Path) -> None:
    run = Run(warm, rank=0)
    assert _differing(run, read_checkpoint(CHECKPOINT, Shape())) == set()
    write_checkpoint(tmp_path / "out", run.native(), run.shape, note="a test")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (CHECKPOINT / "model.safetensors").read_bytes()


def test_the_first_steps_of_a_warm_start_move_only_the_temporary_heads(warm: Plan) -> None:
    heads = Run(warm, rank=0).heads.token_cell.weight.clone()
    train(warm)
    native, _, progress = trained_weights(warm)
    assert progress["step"] >= 1
    stored = read_checkpoint(CHECKPOINT, Shape())
    assert all(torch.equal(native[name], stored[name]) for name in native)
    run = Run(warm, rank=0)
    run.load("joint.pt")
    assert not torch.equal(run.heads.token_cell.weight, heads)


def test_a_warm_start_may_go_through_both_stages(warm: Plan) -> None:
    train(dataclasses.replace(warm, vision_minutes=MOMENT))
    stages = [Run(warm, rank=0).load(name) for name in ("vision.pt", "joint.pt")]
    assert all(stage is not None and stage.step >= 1 for stage in stages)
    assert stages[0] is not None
    assert stages[0].difficulty == warm.vision_difficulty


def test_a_run_from_nothing_goes_through_both_stages_and_moves_every_part(tmp_path: Path) -> None:
    plan = Plan(folder=tmp_path, ranks=1, vision_minutes=MOMENT, joint_minutes=MOMENT)
    fresh = {name: tensor.clone() for name, tensor in Run(plan, rank=0).native().items()}
    train(plan)
    assert plan.folder.joinpath("vision.pt").exists()
    native, _, _ = trained_weights(plan)
    moved = {name for name in native if not torch.equal(native[name], fresh[name])}
    for part in ("vision_tower", "multi_modal_projector", "language_model", "lm_head"):
        assert any(part in name for name in moved), part


def test_a_save_comes_back_whole(warm: Plan) -> None:
    run = Run(dataclasses.replace(warm, start=None), rank=0)
    warm.folder.mkdir()
    run.save("joint.pt", Progress(step=7, samples=70, seconds=3.5, difficulty=0.5))
    other = Run(warm, rank=0)
    assert _differing(other, run.native())
    assert other.load("joint.pt") == Progress(step=7, samples=70, seconds=3.5, difficulty=0.5)
    assert _differing(other, run.native()) == set()


def test_there_is_nothing_to_export_before_the_joint_stage(warm: Plan) -> None:
    with pytest.raises(FileNotFoundError, match="has not begun"):
        trained_weights(warm)
