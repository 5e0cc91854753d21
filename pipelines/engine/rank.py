"""The process of one rank of a tensor-parallel engine (see `ranks.py`): `python -m pipelines.engine.rank JSON`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from pipelines.engine.load import load_rank
from pipelines.engine.options import EngineOptions
from pipelines.engine.parallel import Peers, follow


def main(text: str) -> None:
    """Load this rank's slice and follow rank 0."""
    logging.basicConfig(stream=sys.stderr)
    job = json.loads(text)
    options = EngineOptions(**job["options"])
    peers = Peers(job["rank"], job["world"], rendezvous=job["rendezvous"], cuda=job["cuda"])
    core = load_rank(Path(job["folder"]), options, peers=peers).core
    follow(core.runner, peers)
    peers.close()


if __name__ == "__main__":
    main(sys.argv[1])
