"""A page's Markdown stays inside its page, shown by a real renderer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pipelines.control.sheltered import fenced, sheltered

PIECES = [
    *("```", "````", "~~~", "```text", "``", "`"),
    *("<script>alert(1)</script>", "<!--", "-->", '<a id="0-page-1"></a>', "</div>", "<", "&lt;", "\\", "\\<"),
    *("# ", "## Page 4", "### x", "===", "---", "-", "***", "| a | b |", "|---|---|"),
    *("> ", "- ", "1. ", "10. ", "    ", "  ", " ", "\t", "word", "![x](http://evil/x.png)", "[x]: http://evil"),
    *("\n", "\n\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"),
]
pages = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def tokens(text: str) -> list[Token]:
    """All of CommonMark with tables, raw HTML allowed; inline tokens too."""
    found: list[Token] = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        found += [token, *(token.children or ())]
    return found


def document(*bodies: str) -> str:
    return "".join(f"## Page {number}\n\n{body}\n\n" for number, body in enumerate(bodies, 1)) + "the end\n"


@settings(max_examples=400, deadline=None)
@given(st.lists(pages, min_size=1, max_size=3))
def test_no_page_brings_html_or_leaves_its_place(bodies: list[str]) -> None:
    shown = tokens(document(*map(sheltered, bodies)))
    assert not [token for token in shown if token.type in {"html_block", "html_inline", "image"}]
    headings = [token for token in shown if token.type == "heading_open" and token.tag in {"h1", "h2"}]
    assert [(token.tag, token.level) for token in headings] == [("h2", 0)] * len(bodies)
    *_, last = (token for token in shown if token.type == "text")
    assert last.content == "the end"


@settings(max_examples=200, deadline=None)
@given(pages)
def test_a_code_block_shows_its_text_as_it_is(text: str) -> None:
    shown = MarkdownIt("commonmark").parse(fenced(text, "text") + "\n\nthe end\n")
    assert shown[0].type == "fence"
    assert shown[0].content == text.replace("\r\n", "\n").replace("\r", "\n") + "\n"
    assert shown[2].content == "the end"


@pytest.mark.parametrize(
    ("page", "stands"),
    [
        ("# Report\n\n## Part", "### Report\n\n#### Part"),
        ("Report\n===", "Report\n&#61;=="),
        ("above\n---\nbelow", "above\n***\nbelow"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "| a | b |\n|---|---|\n| 1 | 2 |"),
        ("- one\n- two\n\n**bold** and `code`", "- one\n- two\n\n**bold** and `code`"),
        ("```c\n#include <stdio.h>\n```", "```c\n#include <stdio.h>\n```"),
        ("```\nnever closed", "```\nnever closed\n```"),
        ("#hashtag and a < b", "#hashtag and a &lt; b"),
    ],
)
def test_what_a_page_means_is_kept(page: str, stands: str) -> None:
    assert sheltered(page) == stands
