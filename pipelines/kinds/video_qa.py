"""`video_qa`: one or many questions on a video, answered independently or as one conversation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from pipelines.engine.types import Completion
from pipelines.kinds.base import (
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

Question = Annotated[str, StringConstraints(min_length=1, max_length=8_000, strip_whitespace=True)]


class VideoQaParameters(KindParameters):
    """Parameters of `video_qa`."""

    questions: tuple[Question, ...] = Field(min_length=1, max_length=100, description="what is asked of each video")
    mode: Literal["independent", "conversation"] = Field(
        "independent", description="independent: no question sees another's answer; conversation: turn after turn"
    )
    num_segments: int = Field(32, ge=1, le=2_048, description="frames sampled from the video")
    frame_tiles: int = Field(1, ge=1, le=12, description="tiles a frame")
    bound: Bound | None = Field(None, description="only this part of the video, seconds from and to")


class VideoQa(Kind[VideoQaParameters]):
    """Questions on videos: all questions on one video are one item and share one prefill."""

    name = "video_qa"
    title = "Answer questions about videos"
    media = frozenset({MediaClass.VIDEO})
    Parameters = VideoQaParameters
    examples = (
        Example(
            title="Two independent questions on a clip",
            parameters={"questions": ["Which way does the circle move?", "What colour is it?"], "num_segments": 8},
            media=(MediumView(media_class=MediaClass.VIDEO, images=8),),
            answers=("left", "red"),
            output=Output(
                text="Q: Which way does the circle move?\nA: left\n\nQ: What colour is it?\nA: red",
                data={
                    "answers": [
                        {"question": "Which way does the circle move?", "answer": "left"},
                        {"question": "What colour is it?", "answer": "red"},
                    ]
                },
            ),
        ),
        Example(
            title="One question on a part of a video",
            parameters={"questions": ["What happens?"], "bound": [30, 60], "num_segments": 16},
            media=(MediumView(media_class=MediaClass.VIDEO, images=16),),
            answers=("A ball bounces.",),
            output=Output(
                text="A ball bounces.", data={"answers": [{"question": "What happens?", "answer": "A ball bounces."}]}
            ),
        ),
    )

    def preprocessing(self, parameters: VideoQaParameters) -> Preprocessing:
        """The frames of the card's index rule."""
        return Preprocessing(
            num_segments=parameters.num_segments, frame_tiles=parameters.frame_tiles, bound=parameters.bound
        )

    def dialogue(self, parameters: VideoQaParameters, media: tuple[MediumView, ...]) -> Dialogue:
        """The frames stand before the first question of a conversation, and before every independent question."""
        prefix = placeholders(media)
        if parameters.mode == "conversation":
            first, *rest = parameters.questions
            return Dialogue(questions=(prefix + first, *rest), conversation=True)
        return Dialogue(questions=tuple(prefix + question for question in parameters.questions))

    def parse(self, parameters: VideoQaParameters, answers: tuple[Completion, ...]) -> Output:
        """One answer a question; a single answer is the text itself."""
        pairs = [
            {"question": question, "answer": answer.text}
            for question, answer in zip(parameters.questions, answers, strict=True)
        ]
        if len(pairs) == 1:
            text = pairs[0]["answer"]
        else:
            text = "\n\n".join(f"Q: {pair['question']}\nA: {pair['answer']}" for pair in pairs)
        return Output(text=text, data={"answers": pairs}, flags=answer_flags(answers))


KIND = VideoQa()
