"""Chat requests as OpenAI's clients send them. What is not supported is refused by name, never dropped in silence."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(max_length=1_000_000)]
Stop = Annotated[str, Field(min_length=1, max_length=1_000)]


class Request(BaseModel):
    """Unknown fields are errors; `true` is no number and `"6"` neither."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(Request):
    """Text."""

    type: Literal["text"]
    text: Text


class ImageUrl(Request):
    """`https://…`, `s3://…` or `data:image/…;base64,…`. `detail` decides the tiles: low is one."""

    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Request):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Request):
    """`https://…`, `s3://…`, `data:video/mp4;base64,…`, or frames: `data:video/jpeg;base64,first,second,…`."""

    url: str = Field(min_length=1)


class VideoPart(Request):
    """A video."""

    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class ChatMessage(Request):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part] | None = None
    name: str | None = Field(None, description="accepted, and not shown to the model")
    refusal: None = None


class StreamOptions(Request):
    """How the stream ends. Chunks are never padded."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class VideoOptions(Request):
    """How a video is sampled: evenly, `num_frames` in all, or `fps` a second and `num_frames` at most."""

    num_frames: Annotated[int, Field(ge=1, le=2_048)] | Literal[-1] = Field(
        32, description="-1: all frames that were sent, or as many as fps gives"
    )
    fps: float | None = Field(None, gt=0, le=1_000, description="frames a second")


class MediaOptions(Request):
    """Options of media, as LMDeploy and vLLM have them."""

    video: VideoOptions | None = None


class ResponseFormat(Request):
    """Plain text is what there is."""

    type: Literal["text"]


class ChatRequest(Request):
    """A chat completion. Without `temperature`, `top_k` or a `top_p` below 1 it is greedy, the model's own default."""

    model: str = Field(max_length=200)
    messages: list[ChatMessage] = Field(min_length=1, max_length=1_000)
    max_tokens: int | None = Field(None, ge=1, le=16_384)
    max_completion_tokens: int | None = Field(None, ge=1, le=16_384)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=100_000)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="with stream")
    media_io_kwargs: MediaOptions | None = None
    max_tiles: int | None = Field(None, ge=1, le=40, description="tiles an image, beyond OpenAI's own parameters")
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, max_length=512, description="kept with the request")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16, description="kept with the request"
    )
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options belongs to stream: true; set that, or leave it out")
        return self

    @property
    def notes(self) -> dict[str, Any]:
        """What the caller wants to find again."""
        return {**(self.metadata or {}), **({"user": self.user} if self.user else {})}

    @property
    def sampled(self) -> bool:
        """True where the answer is drawn, not the most likely one."""
        if self.temperature is not None:
            return self.temperature > 0
        return self.top_k is not None or (self.top_p is not None and self.top_p < 1)

    def generation(self) -> dict[str, Any]:
        """The kind's decoding options."""
        options: dict[str, Any] = {}
        tokens = self.max_completion_tokens or self.max_tokens
        if tokens is not None:
            options["max_new_tokens"] = tokens
        if self.sampled:
            # From all tokens, unless the caller says how many: the card's 50 is no part of OpenAI's protocol.
            options |= {"do_sample": True, "temperature": self.temperature or 1.0, "top_k": 0}
        for name in ("top_p", "top_k", "repetition_penalty", "seed"):
            value = getattr(self, name)
            if value is not None:
                options[name] = value
        if self.stop:
            options["stop"] = [self.stop] if isinstance(self.stop, str) else list(self.stop)
        return options
