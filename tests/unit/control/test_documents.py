"""Documents put together from their pages, as Markdown and as plain text."""

from __future__ import annotations

import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipelines.control.markdown import MarkdownWriter
from pipelines.control.plaintext import TextWriter
from pipelines.control.query import ResultView
from pipelines.jobs.states import ItemState


def view(page: int | None, text: str | None = None, *, form: str | None = "text", **changes: Any) -> ResultView:
    values: dict[str, Any] = dict.fromkeys(ResultView.__dataclass_fields__)
    values |= {"job_id": uuid.UUID(int=1), "seq": page or 0, "doc": 0, "page": page, "name": "a_b.pdf", "text": text}
    values |= {"state": ItemState.SUCCEEDED, "flags": (), "output": {"format": form} if form else {}}
    return ResultView(**{**values, **changes})


PAGES = (
    view(0, "first\nline"),
    view(1, "", flags=("blank",)),
    view(2, state=ItemState.FAILED, error_code="corrupt_media", error_message="does not\nrender"),
    view(3, "half a pa", flags=("continued", "truncated", "low_confidence")),
    view(4, "# Title\n\nbody", form="markdown", flags=("rotated",)),
    view(5, '{"a": 1}', form="json"),
)


def test_markdown_has_a_heading_a_document_and_an_anchor_a_page() -> None:
    writer = MarkdownWriter()
    text = "".join(writer.write(page) for page in PAGES)
    assert text.startswith('# a\\_b.pdf\n\n<a id="0-page-1"></a>\n\n## Page 1\n\n```text\nfirst\nline\n```\n\n')
    assert '<a id="0-page-2"></a>\n\n## Page 2\n\n> **blank**\n\n' in text
    assert "## Page 3\n\n> **failed** (corrupt\\_media): does not render\n\n" in text
    assert "## Page 4\n\n> **truncated, low\\_confidence**\n\n```text\nhalf a pa\n```\n\n" in text
    assert "## Page 5\n\n### Title\n\nbody\n\n" in text
    assert "## Page 6\n\n```json\n" in text
    assert text.count("# a\\_b.pdf") == 1


def test_a_document_of_one_item_has_no_page() -> None:
    writer = MarkdownWriter()
    assert writer.write(view(None, "a caption", form=None)) == "# a\\_b.pdf\n\na caption\n\n"
    assert writer.write(view(None, "more", form=None, doc=1)).startswith("\n# ")


def test_plain_text_has_a_line_a_page_and_form_feeds_between() -> None:
    writer = TextWriter()
    pages = "".join(writer.write(page) for page in PAGES).split("\f")
    assert pages[:4] == [
        "── a_b.pdf, page 1\nfirst\nline\n",
        "── a_b.pdf, page 2 [blank]\n\n",
        "── a_b.pdf, page 3 [failed: corrupt_media]\ndoes not render\n",
        "── a_b.pdf, page 4 [truncated, low_confidence]\nhalf a pa\n",
    ]


@given(st.lists(st.text(st.sampled_from("ab\f\n─ ")), min_size=1, max_size=4))
def test_no_page_can_look_like_two(texts: list[str]) -> None:
    writer = TextWriter()
    whole = "".join(writer.write(view(number, text)) for number, text in enumerate(texts))
    assert len(whole.split("\f")) == len(texts)
