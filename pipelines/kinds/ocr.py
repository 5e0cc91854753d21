"""`ocr`: the text of a page or an image, as plain text, Markdown or JSON."""

from __future__ import annotations

import json
import re
from typing import Literal

from pydantic import Field

from pipelines.engine.types import Completion, FinishReason
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

_PROMPTS = {
    "text": "Please read all the text in this image, line by line. Answer with the text only.",
    "markdown": "Please read all the text in this image. Answer in Markdown: keep headings, lists and tables.",
    "json": "Please read all the text in this image. Answer with one JSON object of fields and values only.",
}
_FENCE = re.compile(r"\A```[a-zA-Z]*\n(?P<body>.*?)\n?```\Z", re.DOTALL)


class OcrParameters(KindParameters):
    """Parameters of `ocr`."""

    output: Literal["text", "markdown", "json"] = Field("text", description="form of the answer")
    prompt: str | None = Field(
        None, min_length=1, max_length=8_000, description="your own instruction instead of the built-in one"
    )
    max_tiles: int = Field(12, ge=1, le=MAX_TILES, description="tiles of 448 pixels a page, 1 to 40, plus a thumbnail")
    dpi: int = Field(144, ge=36, le=600, description="resolution at which PDF pages are drawn")


class Ocr(Kind[OcrParameters]):
    """Bulk document OCR: one item a page."""

    name = "ocr"
    title = "Read the text of images, PDF and TIFF pages"
    media = frozenset({MediaClass.IMAGE, MediaClass.DOCUMENT})
    Parameters = OcrParameters
    examples = (
        Example(
            title="A scanned page as plain text",
            parameters={"output": "text", "max_tiles": 12},
            media=(MediumView(media_class=MediaClass.IMAGE),),
            answers=("Invoice 17\nTotal 12.50",),
            output=Output(text="Invoice 17\nTotal 12.50", data={"format": "text"}),
        ),
        Example(
            title="Fields of a form as JSON",
            parameters={"output": "json"},
            media=(MediumView(media_class=MediaClass.IMAGE),),
            answers=('```json\n{"total": "12.50"}\n```',),
            output=Output(text='{"total": "12.50"}', data={"format": "json", "value": {"total": "12.50"}}),
        ),
    )

    def preprocessing(self, parameters: OcrParameters) -> Preprocessing:
        """Tiles as the caller allows; PDF pages at the caller's resolution."""
        return Preprocessing(max_tiles=parameters.max_tiles, dpi=parameters.dpi)

    def dialogue(self, parameters: OcrParameters, media: tuple[MediumView, ...]) -> Dialogue:
        """One question over one page."""
        return Dialogue(questions=(placeholders(media) + (parameters.prompt or _PROMPTS[parameters.output]),))

    def parse(self, parameters: OcrParameters, answers: tuple[Completion, ...]) -> Output:
        """Strip a code fence around Markdown or JSON; a JSON answer that does not parse is kept and flagged."""
        (answer,) = answers
        flags = answer_flags(answers)
        if parameters.output == "text":
            return Output(text=answer.text, data={"format": "text"}, flags=flags)
        fenced = _FENCE.match(answer.text)
        body = fenced["body"] if fenced else answer.text
        if parameters.output == "markdown":
            return Output(text=body, data={"format": "markdown"}, flags=flags)
        try:
            value = json.loads(body)
        except ValueError:
            reason = "cut off" if answer.finish_reason is FinishReason.LENGTH else "not JSON"
            return Output(text=answer.text, data={"format": "json", "problem": reason}, flags=(*flags, "invalid_json"))
        return Output(text=body, data={"format": "json", "value": value}, flags=flags)


KIND = Ocr()
