"""Makes the bundled demo checkpoint from nothing.

python -m tests.demo_model train                     hours on two cores; resumes where it was stopped
python -m tests.demo_model export CHECKPOINT          writes the last save in the original layout
python -m tests.demo_model evaluate CHECKPOINT        scores a checkpoint on held-out renders
python -m tests.demo_model check                      scores the last save on a few of them, into the run's curve.jsonl
python -m tests.demo_model card CHECKPOINT            writes the model card from scores.json, the log and the curve
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.demo_model.card import reached, write_card
from tests.demo_model.evaluate import Score, evaluate
from tests.demo_model.export import write_checkpoint
from tests.demo_model.run import Plan, default_folder, trained_weights
from tests.demo_model.train import train


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.demo_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where the run's saves are")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument(
        "--from",
        dest="start",
        type=Path,
        help="begin with this checkpoint's weights (--vision-minutes 0: in the joint stage)",
    )
    training.add_argument("--seed", type=int, default=Plan.seed)
    training.add_argument("--ranks", type=int, default=Plan.ranks, help="processes that share each step (CPU)")
    training.add_argument("--vision-minutes", type=float, default=Plan.vision_minutes)
    training.add_argument("--joint-minutes", type=float, default=Plan.joint_minutes)
    training.add_argument("--vision-difficulty", type=float, default=Plan.vision_difficulty)
    training.add_argument("--joint-difficulty", type=float, default=Plan.joint_difficulty)
    exporting = commands.add_parser("export")
    exporting.add_argument("checkpoint", type=Path)
    exporting.add_argument("--note", default="Trained on synthetic text, shapes and clips only.")
    scoring = commands.add_parser("evaluate")
    scoring.add_argument("checkpoint", type=Path)
    scoring.add_argument("--count", type=int, default=24, help="questions in each set")
    scoring.add_argument("--only", default="", help="only sets whose name contains this")
    scoring.add_argument("--json", type=Path, help="also write the scores here")
    checking = commands.add_parser("check")
    checking.add_argument("--count", type=int, default=4, help="questions in each set")
    checking.add_argument("--only", default="", help="only sets whose name contains this")
    writing = commands.add_parser("card")
    writing.add_argument("checkpoint", type=Path)
    writing.add_argument("--seed", type=int, default=Plan.seed)
    writing.add_argument("--history", type=Path, help="Markdown to put into the card: what else was done")
    return parser


def _scores(checkpoint: Path, found: argparse.Namespace) -> list[dict[str, Any]]:
    """Score a checkpoint folder, printing each set as it is done."""
    scores: list[Score] = []
    print(f"{'set':38} {'measure':8} {'value':>7} {'exact':>7} {'n':>4} {'s':>5}")
    for score in evaluate(checkpoint, count=found.count, device=found.device, only=found.only):
        scores.append(score)
        print(
            f"{score.name:38} {score.measure:8} {score.value:7.3f} {score.exact:7.2f} "
            f"{score.count:4d} {score.seconds:5.0f}",
            flush=True,
        )
    return [dataclasses.asdict(score) for score in scores]


def _evaluate(found: argparse.Namespace) -> None:
    scores = _scores(found.checkpoint, found)
    if found.json:
        found.json.write_text(json.dumps(scores, indent=2) + "\n")


def _check(found: argparse.Namespace) -> None:
    """Score a copy of the last save: the run goes on meanwhile."""
    torch.set_num_threads(1)
    native, shape, progress = trained_weights(Plan(folder=found.folder))
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), native, shape, note="a check")
        means = reached(_scores(Path(folder), found))
    with (found.folder / "curve.jsonl").open("a", encoding="utf-8") as curve:
        curve.write(json.dumps({**progress, "questions": found.count, "means": means}) + "\n")


def main() -> None:
    """Read the command line and do what it asks."""
    found = _parser().parse_args()
    if found.command == "train":
        train(
            Plan(
                folder=found.folder,
                start=found.start,
                seed=found.seed,
                ranks=found.ranks if found.device == "cpu" else 1,
                vision_minutes=found.vision_minutes,
                joint_minutes=found.joint_minutes,
                vision_difficulty=found.vision_difficulty,
                joint_difficulty=found.joint_difficulty,
                device=found.device,
            )
        )
    elif found.command == "export":
        native, shape, progress = trained_weights(Plan(folder=found.folder))
        write_checkpoint(found.checkpoint, native, shape, note=found.note)
        print(json.dumps(progress))
    elif found.command == "card":
        head = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
        log = found.folder / "log.jsonl"
        write_card(found.checkpoint, log, seed=found.seed, commit=commit, history=found.history)
    elif found.command == "check":
        _check(found)
    else:
        _evaluate(found)


if __name__ == "__main__":
    main()
