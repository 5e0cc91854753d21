"""Documents put together from their pages, as Markdown: a heading a document, a heading and an anchor a page."""

from __future__ import annotations

import re

from pipelines.control.query import ResultView
from pipelines.control.sheltered import fenced, sheltered
from pipelines.jobs.states import ItemState

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")
_FENCED = {"json": "json", "text": "text"}
"""What is no Markdown is shown as it is: text keeps its lines, and JSON its form."""
DOUBTS = ("truncated", "degenerate", "low_confidence", "invalid_json")
"""Flags that a reader of the text should know of."""


class MarkdownWriter:
    """Fed with results in reading order; remembers which document it is in."""

    def __init__(self) -> None:
        self._document: int | None = None

    def write(self, view: ResultView) -> str:
        """The Markdown of one result, with the document's heading before its first page."""
        parts = []
        if view.doc != self._document:
            parts.append(("\n" if self._document is not None else "") + f"# {escaped(view.name)}\n\n")
            self._document = view.doc
        if view.page is not None:
            parts.append(f'<a id="{view.doc}-page-{view.page + 1}"></a>\n\n## Page {view.page + 1}\n\n')
        parts.append(_page(view) + "\n\n")
        return "".join(parts)


def doubts_of(view: ResultView) -> tuple[str, ...]:
    """The flags among `DOUBTS` that a result has."""
    return tuple(flag for flag in view.flags if flag in DOUBTS)


def body(view: ResultView) -> str:
    """One result alone, without any heading: nothing stands around it that its text could harm."""
    if view.state is not ItemState.SUCCEEDED:
        return _failed(view)
    text = view.text or ""
    return fenced(text, "json") if (view.output or {}).get("format") == "json" else text


def _failed(view: ResultView) -> str:
    reason = view.error_code or view.state.value
    return f"> **{view.state.value}** ({escaped(reason)}): {escaped(view.error_message or '')}"


def _page(view: ResultView) -> str:
    if view.state is not ItemState.SUCCEEDED:
        return _failed(view)
    if "blank" in view.flags:
        return "> **blank**"
    language = _FENCED.get(str((view.output or {}).get("format")))
    text = view.text or ""
    body = sheltered(text) if language is None else fenced(text, language)
    doubts = doubts_of(view)
    return f"> **{', '.join(map(escaped, doubts))}**\n\n{body}" if doubts else body


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
