"""`ocr`: the text of a page or an image, as plain text, Markdown or JSON."""

from __future__ import annotations

import json
import re
from typing import Literal

from pydantic import Field

from pipelines.engine.guard import without_repetition
from pipelines.engine.types import Completion, FinishReason
from pipelines.kinds.base import (
    MAX_TILES,
    Dialogue,
    Effort,
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
_DOUBT = -0.4
"""Measured on the bundled checkpoint (`python -m tests.bench.ocr_turned`): 2 of 60 upright pages lie below it, and 175
of 180 turned ones. Upright was the likeliest of the four every time, so doubt costs three answers and no page.
"""
_FENCE = re.compile(r"\A```[a-zA-Z]*\n(?P<body>.*?)\n?```\Z", re.DOTALL)


class OcrParameters(KindParameters):
    """Parameters of `ocr`."""

    output: Literal["text", "markdown", "json"] = Field("text", description="form of the answer")
    prompt: str | None = Field(
        None, min_length=1, max_length=8_000, description="your own instruction instead of the built-in one"
    )
    max_tiles: int = Field(12, ge=1, le=MAX_TILES, description="tiles of 448 pixels a page, 1 to 40, plus a thumbnail")
    dpi: int = Field(144, ge=36, le=600, description="resolution at which PDF pages are drawn")
    skip_blank: bool = Field(default=True, description="answer a blank page with no text, without asking the model")
    max_continuations: int = Field(
        3, ge=0, le=16, description="go on so many times, `max_new_tokens` each, where a page is cut off by its length"
    )
    low_confidence: float | None = Field(
        _DOUBT,
        ge=-100,
        le=0,
        description="mean log-probability a token below which an answer is flagged `low_confidence`; null: never",
    )
    auto_rotate: bool = Field(
        default=True,
        description="read a page again at 90, 180 and 270 degrees where its answer is of low confidence or degenerate",
    )


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
            title="A pile of old scans: every blank page skipped, every page turned upright, long ones read to the end",
            parameters={"skip_blank": True, "auto_rotate": True, "low_confidence": -0.4, "max_continuations": 8},
            media=(MediumView(media_class=MediaClass.DOCUMENT),),
            answers=("Minutes of the meeting",),
            output=Output(text="Minutes of the meeting", data={"format": "text"}),
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

    def effort(self, parameters: OcrParameters) -> Effort:
        """Long pages are read to their end, and pages that lie on their side or head are turned."""
        return Effort(
            continuations=parameters.max_continuations,
            doubt=parameters.low_confidence,
            turn=parameters.auto_rotate,
        )

    def blank(self, parameters: OcrParameters) -> Output | None:
        """No text, so that none is invented."""
        if not parameters.skip_blank:
            return None
        value = {"value": None} if parameters.output == "json" else {}
        return Output(text="", data={"format": parameters.output, **value})

    def parse(self, parameters: OcrParameters, answers: tuple[Completion, ...]) -> Output:
        """Strip a code fence around Markdown or JSON; a JSON answer that does not parse is kept and flagged.

        Of what a degenerate answer repeats, one is kept.
        """
        (answer,) = answers
        flags = answer_flags(answers)
        text = without_repetition(answer.text) if answer.degenerate else answer.text
        if parameters.output == "text":
            return Output(text=text, data={"format": "text"}, flags=flags)
        fenced = _FENCE.match(text)
        body = fenced["body"] if fenced else text
        if parameters.output == "markdown":
            return Output(text=body, data={"format": "markdown"}, flags=flags)
        try:
            value = json.loads(body)
        except ValueError:
            reason = "cut off" if answer.finish_reason is FinishReason.LENGTH else "not JSON"
            return Output(text=text, data={"format": "json", "problem": reason}, flags=(*flags, "invalid_json"))
        return Output(text=body, data={"format": "json", "value": value}, flags=flags)


KIND = Ocr()
