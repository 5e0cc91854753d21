"""What a medium is turned into: the parameters of preprocessing."""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass

from pipelines.jobs.errors import InvalidParameter
from pipelines.media.frames import Bound
from pipelines.media.images import MAX_TILES, TILE


class Output(enum.StrEnum):
    """What the engine eats."""

    TILES = "tiles"
    IMAGES = "images"


MIN_DPI, MAX_DPI = 36, 600


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Parameters of preprocessing; the defaults are the card's, and for video `max_tiles=1` is.

    `max_tiles` an image or frame; `tile` pixels a side; `dpi` for PDF pages; `num_segments`, `fps` (frames a
    second, `num_segments` at most) and `bound` (seconds) for videos; `readers` in the order in which they are tried.
    """

    output: Output = Output.TILES
    max_tiles: int = 12
    tile: int = TILE
    thumbnail: bool = True
    dpi: int = 150
    num_segments: int = 32
    bound: Bound | None = None
    fps: float | None = None
    readers: tuple[str, ...] = ("decord", "pyav")

    def __post_init__(self) -> None:
        if not 1 <= self.max_tiles <= MAX_TILES:
            raise InvalidParameter(f"max_tiles must be from 1 to {MAX_TILES}.", param="max_tiles")
        if not MIN_DPI <= self.dpi <= MAX_DPI:
            raise InvalidParameter(f"dpi must be from {MIN_DPI} to {MAX_DPI}.", param="dpi")
        if self.num_segments < 1:
            raise InvalidParameter("num_segments must be at least 1.", param="num_segments")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise InvalidParameter("fps must be a number above 0.", param="fps")

    def parameters(self) -> dict[str, object]:
        """Everything that decides pixels, as JSON values: the parameters of `pack_key`."""
        values = asdict(self)
        del values["readers"]  # the conformance suite holds all readers to the same pixels
        return {**values, "output": str(self.output), "bound": list(self.bound) if self.bound else None}

    @classmethod
    def from_json(cls, values: dict[str, object]) -> PrepareOptions:
        """The inverse of `to_json`."""
        bound = values["bound"]
        readers = values["readers"]
        if not isinstance(readers, list) or not (bound is None or isinstance(bound, list)):
            raise TypeError("readers must be a list, bound a list or null")
        fixed = {
            "output": Output(str(values["output"])),
            "bound": (float(bound[0]), float(bound[1])) if bound else None,
            "readers": tuple(readers),
        }
        return cls(**{**values, **fixed})  # type: ignore[arg-type]  # checked by __post_init__ and by the sender

    def to_json(self) -> dict[str, object]:
        """JSON values for the decoder child."""
        return {**self.parameters(), "readers": list(self.readers)}
