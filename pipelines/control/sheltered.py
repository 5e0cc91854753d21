"""A model's Markdown inside a document of ours: it may not leave its page, look like our frame, or bring HTML.

A page can hold anything, and the model writes down what it holds. So headings move two levels down, below the page's
own; what would be HTML, an image or a link definition becomes text; and a code fence ends with its page. Fences count
only at the very start of a line: there every renderer agrees, inside lists and quotations they do not.
"""

from __future__ import annotations

import re

_LINES = re.compile(r"\r\n|\r|\n")  # Markdown's own; Python's `splitlines` knows more
_OPENS = re.compile(r"(?P<fence>`{3,}(?=[^`]*\Z)|~{3,})")
_RUN = re.compile(r"`{3,}|~{3,}")
_NESTED = r"(?P<nesting>[\s>*+\-\d.)]*?)"  # the marks of quotations and lists
_HEADING = re.compile(_NESTED + r"(?P<marks>#{1,6})(?=\s|\Z)")
_UNDERLINE = re.compile(r"(?P<nesting>[\s>]*)(?P<marks>=+|-+)\s*\Z")
_DEEPER = 2
_DEEPEST = 6


def sheltered(text: str) -> str:
    """The Markdown of one page, safe to stand under the page's heading."""
    out: list[str] = []
    fence = ""
    for line in _LINES.split(text):
        if fence:
            out.append(line)
            if re.fullmatch(rf" {{0,3}}{fence[0]}{{{len(fence)},}}[ \t]*", line):
                fence = ""
        elif opening := _OPENS.match(line):
            fence = opening["fence"]
            out.append(line)
        else:
            out.append(_harmless(line))
    if fence:
        out.append(fence)
    return "\n".join(out)


def fenced(text: str, language: str = "") -> str:
    """Text as a code block, shown as it is, line by line; its fence is longer than any run of backticks inside."""
    text = "\n".join(_LINES.split(text))
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _harmless(line: str) -> str:
    # Entities, not backslashes: a backslash before the character would undo one of ours.
    line = line.replace("<", "&lt;").replace("![", "!&#91;").replace("]:", "]&#58;")
    line = _RUN.sub(lambda run: f"&#{ord(run[0][0])};" * len(run[0]), line)
    if underline := _UNDERLINE.fullmatch(line):
        # Under a line of text these make it a heading; three stars are the rule that dashes may have meant.
        marks = underline["marks"]
        rule = "***" if marks[0] == "-" and len(marks) >= 3 else f"&#{ord(marks[0])};{marks[1:]}"
        return underline["nesting"] + rule
    if heading := _HEADING.match(line):
        marks = "#" * min(_DEEPEST, len(heading["marks"]) + _DEEPER)
        return heading["nesting"] + marks + line[heading.end() :]
    return line
