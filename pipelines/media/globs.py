"""`s3://` addresses: one object, a prefix, or a glob.

`?` and `*` match within one part of a key, `**` across parts, `[abc]`, `[a-z]`, `[!a]` one character, `{a,b}`
alternatives (not nested in brackets). An address that ends in `/` is a prefix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pipelines.jobs.errors import InvalidParameter

MAX_KEY_BYTES = 1024  # S3's own limit
MAX_ALTERNATIVES = 64
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAGIC = re.compile(r"[*?\[{]")


@dataclass(frozen=True, kw_only=True)
class S3Pattern:
    """A parsed address. `prefix` is the longest literal beginning: listing it finds all matches, in key order."""

    bucket: str
    pattern: str
    prefix: str
    is_glob: bool
    _regex: re.Pattern[str] = field(repr=False, compare=False)

    @property
    def is_object(self) -> bool:
        """True for one named object."""
        return not self.is_glob and not self.pattern.endswith("/") and self.pattern != ""

    def matches(self, key: str) -> bool:
        """Whether a listed key is meant. Folder markers (keys that end in `/`) never are."""
        return not key.endswith("/") and self._regex.fullmatch(key) is not None


def parse_s3(url: str) -> S3Pattern:
    """Parse `s3://bucket/key`, `s3://bucket/prefix/` or a glob. Raises `InvalidParameter` with what to change."""
    if not url.startswith("s3://"):
        raise InvalidParameter("The address must start with `s3://`.", param="url")
    bucket, _, pattern = url.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise InvalidParameter(f"`{bucket[:80]}` is not the name of a bucket.", param="url")
    check_object_key(pattern, empty=True)
    magic = _MAGIC.search(pattern)
    if magic is None:
        whole = re.escape(pattern) + (".*" if pattern == "" or pattern.endswith("/") else "")
        prefix = pattern
    else:
        alternatives = expand_braces(pattern)
        whole = "|".join(f"(?:{_translate(alternative)})" for alternative in alternatives)
        prefix = pattern[: magic.start()]
    return S3Pattern(
        bucket=bucket, pattern=pattern, prefix=prefix, is_glob=magic is not None, _regex=re.compile(whole, re.DOTALL)
    )


def check_object_key(key: str, *, empty: bool = False) -> str:
    """The key of anybody's object, when it is a sane one. Raises `InvalidParameter`."""
    if not key and not empty:
        raise InvalidParameter("The address names no object in the bucket.", param="url")
    if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        raise InvalidParameter(f"The key is longer than {MAX_KEY_BYTES} bytes.", param="url")
    if _CONTROL.search(key) or any("\ud800" <= character <= "\udfff" for character in key):
        raise InvalidParameter("The key holds control characters.", param="url")
    if any(part in {".", ".."} for part in key.split("/")):
        raise InvalidParameter("The key must not hold `.` or `..` as a part.", param="url")
    return key


def expand_braces(pattern: str) -> list[str]:
    """`a{b,c}d` to `abd`, `acd`; nested as deep as they come. Raises `InvalidParameter` for unbalanced or too many."""
    done: list[str] = []
    open_patterns = [pattern]
    while open_patterns:
        current = open_patterns.pop()
        start = current.find("{")
        if start < 0:
            if "}" in current:
                raise InvalidParameter("The glob closes a `}` that was not opened.", param="url")
            done.append(current)
        else:
            options, end = _options(current, start)
            open_patterns.extend(current[:start] + option + current[end:] for option in reversed(options))
        if len(done) + len(open_patterns) > MAX_ALTERNATIVES:
            raise InvalidParameter(f"The glob has more than {MAX_ALTERNATIVES} alternatives.", param="url")
    return done


def _options(pattern: str, start: int) -> tuple[list[str], int]:
    """The alternatives of the brace at `start`, and the index behind it."""
    options, depth, begin = [], 0, start + 1
    for index in range(start, len(pattern)):
        character = pattern[index]
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                options.append(pattern[begin:index])
                return options, index + 1
        elif character == "," and depth == 1:
            options.append(pattern[begin:index])
            begin = index + 1
    raise InvalidParameter("The glob opens a `{` that is not closed.", param="url")


def _translate(pattern: str) -> str:
    """One glob without braces as a regular expression that cannot backtrack badly: runs of stars are merged."""
    out: list[str] = []
    index = 0
    while index < len(pattern):
        character = pattern[index]
        if character == "*":
            end = index
            while end < len(pattern) and pattern[end] == "*":
                end += 1
            across = end - index > 1
            at_part = (index == 0 or pattern[index - 1] == "/") and pattern[end : end + 1] == "/"
            if across and at_part:
                out.append("(?:.*/)?")  # `a/**/b` also means `a/b`
                end += 1
            else:
                out.append(".*" if across else "[^/]*")
            index = end
        elif character == "?":
            out.append("[^/]")
            index += 1
        elif character == "[":
            piece, index = _bracket(pattern, index)
            out.append(piece)
        else:
            out.append(re.escape(character))
            index += 1
    return "".join(out)


def _bracket(pattern: str, start: int) -> tuple[str, int]:
    negated = pattern[start + 1 : start + 2] in {"!", "^"}
    begin = start + 1 + negated
    end = pattern.find("]", begin + 1)  # a `]` right at the beginning is meant literally
    if end < 0:
        raise InvalidParameter("The glob opens a `[` that is not closed.", param="url")
    inner = re.sub(r"([\\\[\]^&~|])", r"\\\1", pattern[begin:end])
    expression = f"[^/{inner}]" if negated else f"(?!/)[{inner}]"
    try:
        re.compile(expression)
    except re.error as error:
        raise InvalidParameter("The glob holds a range such as `[z-a]` that is empty.", param="url") from error
    return expression, end + 1
