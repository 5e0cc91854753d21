"""`python -m tests.demo_model train`: makes the bundled demo checkpoint from nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.demo_model.run import Plan, default_folder
from tests.demo_model.train import train


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo_model", description=__doc__)
    parser.add_argument("command", choices=["train"])
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--ranks", type=int, default=Plan.ranks)
    parser.add_argument("--vision-minutes", type=float, default=Plan.vision_minutes)
    parser.add_argument("--joint-minutes", type=float, default=Plan.joint_minutes)
    found = parser.parse_args()
    train(
        Plan(
            folder=found.folder,
            seed=found.seed,
            ranks=found.ranks,
            vision_minutes=found.vision_minutes,
            joint_minutes=found.joint_minutes,
        )
    )


if __name__ == "__main__":
    main()
