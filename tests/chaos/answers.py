"""Whether the real engine's answers are its own: asked again in peace, alone, the model says the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.engine.load import load_engine
from pipelines.engine.options import EngineOptions
from pipelines.engine.types import Engine, EngineRequest, Tiles
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass, MediumView
from pipelines.store.values import clean_text

DTYPE: Final = "float64"
"""Wide enough that the company in a batch decides no near tie between two tokens."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer of the real engine over a flat picture."""

    where: str
    kind: str
    parameters: dict[str, Any]
    colour: tuple[int, int, int]
    text: str


def disagreements(checkpoint: Path, answers: Sequence[Answered], *, tile: int) -> list[str]:
    """Those of `answers` that the model does not give when it is asked again."""
    if not answers:
        return []
    engine = load_engine(checkpoint, EngineOptions(device="cpu", dtype=DTYPE, threads=1))
    try:
        return [
            f"{answer.where}: the model says {said!r}, stored is {answer.text!r}"
            for answer in answers
            if (said := _ask(engine, answer, tile)) != answer.text
        ]
    finally:
        engine.close()


def _ask(engine: Engine, answer: Answered, tile: int) -> str:
    kind = registry.get(answer.kind)
    parameters = kind.parse_parameters(answer.parameters)
    dialogue = kind.dialogue(parameters, (MediumView(media_class=MediaClass.IMAGE),))
    (question,) = dialogue.questions
    pixels = np.empty((1, tile, tile, 3), np.uint8)
    pixels[:] = answer.colour
    request = EngineRequest(
        request_id=answer.where,
        question=question,
        system=dialogue.system,
        media=Tiles(pixels=pixels, counts=(1,), digests=(str(answer.colour),)),
        params=parameters.generation.to_params(),
    )
    completion = engine.submit(request).future.result(timeout=60)
    return clean_text(kind.parse(parameters, (completion,)).text)  # as it is stored
