"""`caption`: a description of an image, a page or a video."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.engine.types import Completion
from pipelines.kinds.base import (
    MAX_TILES,
    Bound,
    Dialogue,
    Example,
    Kind,
    KindParameters,
    MediaClass,
    MediumView,
    Output,
    Preprocessing,
    answer_flags,
    placeholders,
)

_PROMPTS = {
    "short": "Please describe the {medium} shortly.",
    "detailed": "Please describe the {medium} in detail.",
}


class CaptionParameters(KindParameters):
    """Parameters of `caption`."""

    detail: Literal["short", "detailed"] = Field("short", description="how much is said")
    prompt: str | None = Field(
        None, min_length=1, max_length=8_000, description="your own instruction instead of the built-in one"
    )
    max_tiles: int = Field(
        12, ge=1, le=MAX_TILES, description="tiles of 448 pixels an image, 1 to 40, plus a thumbnail"
    )
    frame_tiles: int = Field(1, ge=1, le=12, description="tiles a video frame")
    num_segments: int = Field(32, ge=1, le=2_048, description="frames sampled from a video")
    bound: Bound | None = Field(None, description="only this part of a video, seconds from and to")
    dpi: int = Field(144, ge=36, le=600, description="resolution at which PDF pages are drawn")


class Caption(Kind[CaptionParameters]):
    """Captions of images and videos."""

    name = "caption"
    title = "Describe images and videos"
    media = frozenset({MediaClass.IMAGE, MediaClass.DOCUMENT, MediaClass.VIDEO})
    Parameters = CaptionParameters
    examples = (
        Example(
            title="A short caption of a photo",
            parameters={"detail": "short"},
            media=(MediumView(media_class=MediaClass.IMAGE),),
            answers=("A red circle above a blue square.",),
            output=Output(text="A red circle above a blue square."),
        ),
        Example(
            title="A clip from eight frames",
            parameters={"num_segments": 8, "bound": [0, 10]},
            media=(MediumView(media_class=MediaClass.VIDEO, images=8),),
            answers=("A green triangle moves to the left.",),
            output=Output(text="A green triangle moves to the left."),
        ),
    )

    def preprocessing(self, parameters: CaptionParameters) -> Preprocessing:
        """Tiles an image, frames and tiles a frame for a video."""
        return Preprocessing(
            max_tiles=parameters.max_tiles,
            dpi=parameters.dpi,
            num_segments=parameters.num_segments,
            frame_tiles=parameters.frame_tiles,
            bound=parameters.bound,
        )

    def dialogue(self, parameters: CaptionParameters, media: tuple[MediumView, ...]) -> Dialogue:
        """One question over one medium."""
        video = any(view.media_class is MediaClass.VIDEO for view in media)
        prompt = parameters.prompt or _PROMPTS[parameters.detail].format(medium="video" if video else "image")
        return Dialogue(questions=(placeholders(media) + prompt,))

    def parse(self, parameters: CaptionParameters, answers: tuple[Completion, ...]) -> Output:
        """The answer is the caption."""
        del parameters
        (answer,) = answers
        return Output(text=answer.text, flags=answer_flags(answers))


KIND = Caption()
