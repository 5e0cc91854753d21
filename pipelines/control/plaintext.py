"""Documents put together from their pages, as plain text.

A form feed stands before every page but the first, as in the output of PDF tools, and a line that says which page it
is. Form feeds of a page's own text become line ends, so that no page can look like two.
"""

from __future__ import annotations

from pipelines.control.markdown import doubts_of
from pipelines.control.query import ResultView
from pipelines.jobs.states import ItemState


class TextWriter:
    """Fed with results in reading order."""

    def __init__(self) -> None:
        self._begun = False

    def write(self, view: ResultView) -> str:
        """The text of one result under its line."""
        before = "\f" if self._begun else ""
        self._begun = True
        name = " ".join(view.name.split())
        page = f", page {view.page + 1}" if view.page is not None else ""
        if view.state is not ItemState.SUCCEEDED:
            message = " ".join((view.error_message or "").split())
            return f"{before}── {name}{page} [{view.state.value}: {view.error_code or view.state.value}]\n{message}\n"
        notes = ("blank",) if "blank" in view.flags else doubts_of(view)
        about = f" [{', '.join(notes)}]" if notes else ""
        text = (view.text or "").replace("\f", "\n")
        return f"{before}── {name}{page}{about}\n{text}\n"
