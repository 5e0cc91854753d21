"""`s3://` addresses: one object, a prefix, or a glob.

`?` and `*` match within one part of a key, `**` as a whole part any number of parts, `[abc]`, `[a-z]`, `[!a]` one
character, `{a,b}` alternatives. An address that ends in `/` is a prefix. Matching takes time in proportion to the key
whatever the pattern, for both come from strangers: parts are compared one by one, each by a regular expression that
does not backtrack.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field

from pipelines.jobs.errors import InvalidParameter

MAX_KEY_BYTES = 1024  # S3's own limit
MAX_ALTERNATIVES = 64
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # and lone surrogates, which no UTF-8 holds
_DOTS = re.compile(r"(?:^|/)\.\.?(?:/|\Z)")
_MAGIC = re.compile(r"[*?\[{]")


_Parts = tuple[re.Pattern[str] | None, ...]
"""A compiled glob, part by part; None stands for `**`."""


@dataclass(frozen=True, kw_only=True)
class S3Pattern:
    """A parsed address. `prefix` is the longest literal beginning: listing it finds all matches, in key order."""

    bucket: str
    pattern: str
    prefix: str
    is_glob: bool
    _alternatives: tuple[_Parts, ...] = field(repr=False, compare=False)

    @property
    def is_object(self) -> bool:
        """True for one named object."""
        return not self.is_glob and not self.pattern.endswith("/") and self.pattern != ""

    def matches(self, key: str) -> bool:
        """Whether a listed key is meant. Folder markers (keys that end in `/`) never are."""
        if key.endswith("/") or not key.startswith(self.prefix):
            return False
        if not self.is_glob:
            return not self.is_object or key == self.pattern
        parts = key.split("/")
        return any(_match(alternative, parts) for alternative in self._alternatives)


def parse_s3(url: str) -> S3Pattern:
    """Parse `s3://bucket/key`, `s3://bucket/prefix/` or a glob. Raises `InvalidParameter` with what to change."""
    if not url.startswith("s3://"):
        raise InvalidParameter("The address must start with `s3://`.", param="url")
    bucket, _, pattern = url.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise InvalidParameter(f"`{bucket[:80]}` is not the name of a bucket.", param="url")
    check_object_key(pattern, empty=True)
    magic = _MAGIC.search(pattern)
    return S3Pattern(
        bucket=bucket,
        pattern=pattern,
        prefix=pattern if magic is None else pattern[: magic.start()],
        is_glob=magic is not None,
        _alternatives=() if magic is None else tuple(_compile(option) for option in expand_braces(pattern)),
    )


def check_object_key(key: str, *, empty: bool = False) -> str:
    """The key of anybody's object, when it is a sane one. Raises `InvalidParameter`."""
    if not key and not empty:
        raise InvalidParameter("The address names no object in the bucket.", param="url")
    if len(key) > MAX_KEY_BYTES or len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        raise InvalidParameter(f"The key is longer than {MAX_KEY_BYTES} bytes.", param="url")
    if _CONTROL.search(key):
        raise InvalidParameter("The key holds control characters.", param="url")
    if _DOTS.search(key):
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


def _compile(pattern: str) -> _Parts:
    parts: list[re.Pattern[str] | None] = []
    for part in pattern.split("/"):
        if part != "**":
            _check_brackets(part)
            # Python's translation puts stars in groups that are never entered twice.
            parts.append(re.compile(fnmatch.translate(part)))
        elif not parts or parts[-1] is not None:  # `**/**` means no more than `**`
            parts.append(None)
    if parts[-1] is None:
        parts.append(re.compile(fnmatch.translate("*")))  # at the end `**` means everything below, not nothing
    return tuple(parts)


def _check_brackets(part: str) -> None:
    index = part.find("[")
    while index >= 0:
        # A `]` right behind the opening is meant literally.
        first = index + 2 if part[index + 1 : index + 2] == "!" else index + 1
        end = part.find("]", first + 1)
        if end < 0:
            raise InvalidParameter("The glob opens a `[` that is not closed in its part of the key.", param="url")
        index = part.find("[", end + 1)


def _match(pattern: _Parts, key: list[str]) -> bool:
    """Whether the parts of a key match, by the set of places in the pattern that can be reached."""
    places = _through(pattern, {0})
    for part in key:
        following = set()
        for place in places:
            expression = pattern[place] if place < len(pattern) else _NOTHING
            if expression is None:
                following.add(place)
            elif expression.match(part) is not None:
                following.add(place + 1)
        places = _through(pattern, following)
    return len(pattern) in places


_NOTHING = re.compile(r"(?!)")


def _through(pattern: _Parts, places: set[int]) -> set[int]:
    """With the places behind each `**`, for it may stand for no part."""
    return places | {place + 1 for place in places if place < len(pattern) and pattern[place] is None}
