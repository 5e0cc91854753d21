"""The contract of a job kind.

A kind says, in one file: its parameters, which media it reads, how they are cut, what the model is asked, and how an
answer becomes a result. Nothing else in the project knows a kind by name: the registry finds it, the api's requests and
the OpenAPI examples derive from it, the contract tests run its examples, and `kind` is plain text in the database.
"""

from __future__ import annotations

import enum
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipelines.engine.types import Completion, FinishReason, GenerationParams
from pipelines.jobs.errors import InvalidParameter
from pipelines.jobs.violations import most_telling, place_of

MAX_TILES = 40
"""The card's limit: 40 tiles of 448 x 448 are about 4K."""


class MediaClass(enum.StrEnum):
    """What a source entry may be."""

    IMAGE = "image"
    DOCUMENT = "document"
    VIDEO = "video"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class MediumView:
    """One medium as the model will see it: an image or page (`images` is 1), or a video (`images` sampled frames).

    `blank`: nothing on it could be text. `grid`: columns and rows of an image's tiles, where it was cut into tiles.
    """

    media_class: MediaClass
    images: int = 1
    blank: bool = False
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How media become tiles. `bound` in seconds. `frame_tiles`: tiles a video frame (the card's default is one).

    `fps`: so many frames a second of a video, `num_segments` at most. `media_tiles`: tiles of each medium of an item in
    order, where they differ.
    """

    max_tiles: int = 12
    dpi: int = 144
    num_segments: int = 32
    frame_tiles: int = 1
    bound: tuple[float, float] | None = None
    fps: float | None = None
    media_tiles: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """What is asked. Independent questions share one prefill; a conversation feeds each answer into the next turn."""

    questions: tuple[str, ...]
    conversation: bool = False
    history: tuple[tuple[str, str], ...] = ()
    system: str | None = None


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How far INFER goes beyond one answer a question. The default: no further.

    `continuations`: how many times an answer that hit its length is gone on with. `doubt`: the mean log-probability a
    token below which an answer is flagged `low_confidence`. `turn`: a page whose answer is doubtful or degenerate is
    asked about again lying on each other side, and the best answer stands.
    """

    continuations: int = 0
    doubt: float | None = None
    turn: bool = False


@dataclass(frozen=True, kw_only=True)
class Output:
    """A parsed answer: the readable text, the structured form, and flags such as `truncated` or `invalid_json`."""

    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


def _ordered(bound: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= bound[0] < bound[1]:
        raise ValueError("bound must be two seconds, from and to, with 0 <= from < to")
    return bound


Bound = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""A part of a video, in seconds, from and to."""


class GenerationOptions(BaseModel):
    """How the answer is decoded; the defaults are the original code's (greedy)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: int = Field(1024, ge=1, le=16_384, description="longest answer, in tokens")
    do_sample: bool = Field(default=False, description="sample instead of taking the most likely token")
    temperature: float = Field(1.0, gt=0, le=10, description="with do_sample")
    top_k: int = Field(50, ge=0, le=100_000, description="with do_sample; 0: all tokens")
    top_p: float = Field(1.0, gt=0, le=1, description="with do_sample")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="over the generated tokens, not the prompt")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="with do_sample: the same seed, the same answer")
    stop: tuple[str, ...] = Field((), max_length=8, description="the answer ends before any of these strings")

    def to_params(self) -> GenerationParams:
        """The engine's form."""
        return GenerationParams(**self.model_dump())


class KindParameters(BaseModel):
    """Base of every kind's parameters: strict, with generation options and the choice of fresh answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cache: bool = Field(default=True, description="take the answer that an equal item of yours had before")
    generation: GenerationOptions = Field(default_factory=GenerationOptions, description="decoding options")


P = TypeVar("P", bound=KindParameters)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A worked example: shown in OpenAPI, and run by the contract tests against a fake engine."""

    title: str
    parameters: Mapping[str, Any]
    media: tuple[MediumView, ...]
    answers: tuple[str, ...]
    output: Output


class Kind(ABC, Generic[P]):
    """Subclass it in a file of its own and bind an instance to the module's `KIND`."""

    name: ClassVar[str]
    title: ClassVar[str]
    media: ClassVar[frozenset[MediaClass]]
    many_media: ClassVar[bool] = False
    """True where one item may hold several media (`chat`)."""
    Parameters: type[P]
    examples: ClassVar[tuple[Example, ...]]

    def validate(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Check and complete `parameters`; the JSON form that the job stores. Raises `InvalidParameter`."""
        return self.parse_parameters(parameters).model_dump(mode="json")

    def parse_parameters(self, parameters: Mapping[str, Any]) -> P:
        """The typed form of stored or submitted parameters. Raises `InvalidParameter`, naming the field."""
        try:
            # As JSON and strictly: `true` is no number and `"6"` neither, which Python values would be taken for.
            return self.Parameters.model_validate_json(json.dumps(dict(parameters)), strict=True)
        except ValidationError as error:
            first = most_telling(error.errors(include_url=False))
            path = ".".join(place_of(first))
            known = ", ".join(self.Parameters.model_fields)
            hint = f"; known parameters: {known}" if first["type"] == "extra_forbidden" else ""
            raise InvalidParameter(
                f"parameters.{path}: {first['msg']}{hint}", param=f"parameters.{path}" if path else "parameters"
            ) from error

    @abstractmethod
    def preprocessing(self, parameters: P) -> Preprocessing:
        """How the media are cut for these parameters."""

    @abstractmethod
    def dialogue(self, parameters: P, media: tuple[MediumView, ...]) -> Dialogue:
        """What the model is asked about these media."""

    def effort(self, parameters: P) -> Effort:
        """How far to go for a good answer."""
        del parameters
        return Effort()

    def blank(self, parameters: P) -> Output | None:
        """What an item is answered with, unasked, where all its media are blank; None: the model is asked."""
        del parameters
        return None

    @abstractmethod
    def parse(self, parameters: P, answers: tuple[Completion, ...]) -> Output:
        """Turn the model's answers, one a question in order, into the stored output."""


def placeholders(media: tuple[MediumView, ...]) -> str:
    """The media part of a first question, as the card writes it.

    One image: `<image>`; several: `Image-1: <image>`, one a line; a video: `Frame1: <image>`, one a line.
    """
    lines: list[str] = []
    many_images = sum(view.media_class is not MediaClass.VIDEO for view in media) > 1
    images = 0
    for view in media:
        if view.media_class is MediaClass.VIDEO:
            lines.extend(f"Frame{index + 1}: <image>\n" for index in range(view.images))
            continue
        for _ in range(view.images):
            images += 1
            lines.append(f"Image-{images}: <image>\n" if many_images else "<image>\n")
    return "".join(lines)


def answer_flags(answers: tuple[Completion, ...]) -> tuple[str, ...]:
    """Flags that every kind sets alike: `truncated` (an answer hit its length), `degenerate` (it repeated itself)."""
    flags = []
    if any(answer.finish_reason is FinishReason.LENGTH for answer in answers):
        flags.append("truncated")
    if any(answer.degenerate for answer in answers):
        flags.append("degenerate")
    return tuple(flags)
