"""What tests of the OpenAI surface share: the unmodified client, parts of messages, engines that are watched."""

from __future__ import annotations

import base64
import io
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from PIL import Image

from pipelines.engine.errors import BadRequest, RequestCancelled
from pipelines.engine.fake import FakeEngine, FakeOptions, fake_answer
from pipelines.engine.handle import PendingHandle
from pipelines.engine.types import EngineRequest, Handle, OnText
from tests.api.conftest import Served

MODEL = "internvl-chat-v1-5"


def sdk_of(api: Served, url: str | None = None, **options: Any) -> OpenAI:
    """The client as people use it, but strict about what it is answered."""
    return OpenAI(
        base_url=f"{url or api.url}/v1",
        api_key=api.caller.key,
        **{"max_retries": 0, "_strict_response_validation": True, **options},
    )


def picture(colour: str, form: str = "PNG", size: tuple[int, int] = (60, 40)) -> bytes:
    """A picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, form)
    return out.getvalue()


def data_url(data: bytes, mime: str = "image/png") -> str:
    """Bytes inside an address."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image(url: str, **options: str) -> dict[str, Any]:
    """A part."""
    return {"type": "image_url", "image_url": {"url": url, **options}}


def video(url: str) -> dict[str, Any]:
    """A part, beyond OpenAI's own."""
    return {"type": "video_url", "video_url": {"url": url}}


def words(text: str) -> dict[str, Any]:
    """A part."""
    return {"type": "text", "text": text}


def user(*parts: dict[str, Any]) -> ChatCompletionMessageParam:
    """One turn."""
    content: Any = list(parts)
    return {"role": "user", "content": content}


class WatchedEngine(FakeEngine):
    """Keeps what it was asked, and the handles it gave."""

    def __init__(self, options: FakeOptions | None = None) -> None:
        super().__init__(options)
        self.asked: list[EngineRequest] = []
        self.handles: list[Handle] = []

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        """As the engine's, noted down."""
        handle = super().submit(request, on_text=on_text)
        self.asked.append(request)
        self.handles.append(handle)
        return handle


class StumblingEngine(WatchedEngine):
    """Fails its first `times` requests after three words: it goes down, or (`for_good`) the request was wrong."""

    def __init__(self, *, times: int, for_good: bool) -> None:
        super().__init__()
        self._left = times
        self._for_good = for_good

    def submit(self, request: EngineRequest, *, on_text: OnText | None = None) -> Handle:
        """Say a little, then fail."""
        if not self._left:
            return super().submit(request, on_text=on_text)
        self._left -= 1
        handle = PendingHandle(request.request_id, on_text=on_text, on_cancel=lambda: None)
        handle.emit(" ".join(fake_answer(request).split()[:3]))
        failure = BadRequest("the request went wrong half way") if self._for_good else RequestCancelled("going down")
        handle.fail(failure)
        return handle
