"""`chat`: a conversation over text, many images and videos, with history.

Where the media stand: a message's content is either a string, in which `<image>` and `<video>` mark the media in order
(the card's way), or a list of parts, `{"type": "text", "text": …}` and `{"type": "media", "index": n}`, in which text
is only text. Without any mark, all media stand before the first user message.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.engine.types import Completion
from pipelines.jobs.errors import InvalidParameter
from pipelines.kinds.base import (
    MAX_TILES,
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

_MARK = re.compile(r"<(image|video)>")


class TextPart(BaseModel):
    """Text that is only text."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["text"]
    text: str = Field(max_length=1_000_000)


class MediaPart(BaseModel):
    """The medium of this index (0-based) of the item."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["media"]
    index: int = Field(ge=0, le=10_000)


Part = Annotated[TextPart | MediaPart, Field(discriminator="type")]


class Message(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=1_000_000)] | tuple[Part, ...]


class ChatParameters(KindParameters):
    """Parameters of `chat`."""

    messages: tuple[Message, ...] = Field(min_length=1, max_length=1_000, description="the conversation so far")
    max_tiles: int = Field(
        12, ge=1, le=MAX_TILES, description="tiles of 448 pixels an image, 1 to 40, plus a thumbnail"
    )
    media_tiles: tuple[Annotated[int, Field(ge=1, le=MAX_TILES)], ...] = Field(
        (), max_length=10_000, description="tiles of each medium, in order, where they differ"
    )
    num_segments: int = Field(32, ge=1, le=2_048, description="frames sampled from a video")
    fps: float | None = Field(
        None, gt=0, le=1_000, description="sample so many frames a second instead, num_segments at most"
    )
    frame_tiles: int = Field(1, ge=1, le=12, description="tiles a video frame")
    stream: bool = Field(default=False, description="publish the text while it is made")

    @model_validator(mode="after")
    def _roles_alternate(self) -> ChatParameters:
        turns = self.messages[1:] if self.messages[0].role == "system" else self.messages
        for index, message in enumerate(turns):
            expected = "user" if index % 2 == 0 else "assistant"
            if message.role != expected:
                raise ValueError(
                    "messages must be an optional system message, then user and assistant in turn, ending with user"
                )
        if not turns or turns[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return self


class Chat(Kind[ChatParameters]):
    """Free conversation; one item may hold several media."""

    name = "chat"
    title = "Chat over text, images and videos, with history"
    media = frozenset({MediaClass.IMAGE, MediaClass.VIDEO, MediaClass.NONE})
    many_media = True
    Parameters = ChatParameters
    examples = (
        Example(
            title="Two images in one question",
            parameters={"messages": [{"role": "user", "content": "What differs between the two images?"}]},
            media=(MediumView(media_class=MediaClass.IMAGE), MediumView(media_class=MediaClass.IMAGE)),
            answers=("The colour.",),
            output=Output(text="The colour."),
        ),
        Example(
            title="A follow-up question, text alone",
            parameters={
                "messages": [
                    {"role": "system", "content": "Answer in one word."},
                    {"role": "user", "content": "What is 1 + 1?"},
                    {"role": "assistant", "content": "Two."},
                    {"role": "user", "content": "And twice that?"},
                ]
            },
            media=(),
            answers=("Four.",),
            output=Output(text="Four."),
        ),
    )

    def preprocessing(self, parameters: ChatParameters) -> Preprocessing:
        """As the caller allows."""
        return Preprocessing(
            max_tiles=parameters.max_tiles,
            num_segments=parameters.num_segments,
            frame_tiles=parameters.frame_tiles,
            fps=parameters.fps,
            media_tiles=parameters.media_tiles,
        )

    def dialogue(self, parameters: ChatParameters, media: tuple[MediumView, ...]) -> Dialogue:
        """The history and the last question, with every medium in its place. Raises `InvalidParameter`."""
        messages = list(parameters.messages)
        system = None
        if messages[0].role == "system":
            system = _plain_text(messages.pop(0))
        placer = _Placer(media)
        texts = [placer.render(message) if message.role == "user" else _plain_text(message) for message in messages]
        if placer.used == 0 and media:
            texts[0] = placeholders(media) + texts[0]
        elif placer.used != len(media):
            raise InvalidParameter(
                f"the messages mark {placer.used} media, but the item has {len(media)}: "
                "mark each medium once, in order, or none at all",
                param="parameters.messages",
            )
        history = tuple(zip(texts[0:-1:2], texts[1:-1:2], strict=True))
        return Dialogue(questions=(texts[-1],), history=history, system=system)

    def parse(self, parameters: ChatParameters, answers: tuple[Completion, ...]) -> Output:
        """The answer is the text."""
        del parameters
        (answer,) = answers
        return Output(text=answer.text, flags=answer_flags(answers))


class _Placer:
    """Puts media where the messages mark them, in order, each once."""

    def __init__(self, media: tuple[MediumView, ...]) -> None:
        self._media = media
        self.used = 0

    def render(self, message: Message) -> str:
        if isinstance(message.content, str):
            return _MARK.sub(lambda match: self._next(match[1]), message.content)
        pieces = []
        for part in message.content:
            if isinstance(part, TextPart):
                pieces.append(_only_text(part.text))
            elif part.index != self.used:
                raise InvalidParameter(
                    f"media part {part.index} is out of order: media are used once each, in the order of the source",
                    param="parameters.messages",
                )
            else:
                pieces.append(self._next(None) + "\n")
        return "".join(pieces)

    def _next(self, mark: str | None) -> str:
        if self.used >= len(self._media):
            raise InvalidParameter(
                f"the messages mark more media than the {len(self._media)} that the item has",
                param="parameters.messages",
            )
        view = self._media[self.used]
        self.used += 1
        video = view.media_class is MediaClass.VIDEO
        if mark is not None and (mark == "video") != video:
            raise InvalidParameter(
                f"medium {self.used - 1} is {'a video' if video else 'an image'}, but is marked <{mark}>",
                param="parameters.messages",
            )
        return placeholders((view,)).rstrip("\n")


def _plain_text(message: Message) -> str:
    if isinstance(message.content, str):
        return _only_text(message.content)
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    if len(texts) != len(message.content):
        raise InvalidParameter("only user messages may hold media", param="parameters.messages")
    return _only_text("".join(texts))


def _only_text(text: str) -> str:
    """Text that spells a placeholder must not become one: a word joiner inside it changes nothing a reader sees."""
    return _MARK.sub(lambda match: f"<\N{WORD JOINER}{match[1]}>", text)


KIND = Chat()
