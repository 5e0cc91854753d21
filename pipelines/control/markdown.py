"""Documents put together from their pages."""

from __future__ import annotations

import re

from pipelines.control.query import ResultView
from pipelines.jobs.states import ItemState

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")
_FENCED = "json"


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
        parts.append(body(view) + "\n\n")
        return "".join(parts)


def body(view: ResultView) -> str:
    """One result alone, without any heading."""
    if view.state is ItemState.SUCCEEDED:
        text = view.text or ""
        if (view.output or {}).get("format") == _FENCED:
            return f"{_fence(text)}json\n{text}\n{_fence(text)}"
        return text
    reason = view.error_code or view.state.value
    return f"> **{view.state.value}** ({escaped(reason)}): {escaped(view.error_message or '')}"


def _fence(text: str) -> str:
    """Longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
