"""Which of pydantic's complaints tells a person what to change, and where that stands in what was sent.

Where a value may have several forms (a text or a list of parts), pydantic complains about each form, and writes the
form's name into the place. People know neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_FORM = re.compile(r"\A(?:constrained-)?(?:str|int|float|bool)\Z|[\[({]")


def place_of(violation: Mapping[str, Any]) -> tuple[str, ...]:
    """The path of names and positions, without the names of forms."""
    return tuple(str(part) for part in violation["loc"] if isinstance(part, int) or not _FORM.search(part))


def most_telling(violations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first complaint; or, where a later one lies deeper inside the same value, that one."""
    first = violations[0]
    start = place_of(first)
    deeper = (other for other in violations if len(place_of(other)) > len(start) == _common(start, place_of(other)))
    return next(deeper, first)


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
