"""Notices an answer that repeats itself, while it is being made.

A language model that falls into a loop goes on to the token limit. The rule: the last tokens are one n-gram repeated
at least `REPEATS` times, over at least `LEAST` tokens. Tables and dot leaders repeat too, but not for so long; the
limit is high enough that what is cut has said nothing new for a long while. Looking every `EVERY` tokens costs less
than a microsecond a token.
"""

from __future__ import annotations

from collections.abc import Sequence

EVERY = 16
LEAST = 96
REPEATS = 8
LONGEST = 64
REPEATED = 4
SHORTEST = 24


def repeating(tokens: Sequence[int]) -> int:
    """Return the length of the n-gram that the end of `tokens` repeats, 0 where it does not."""
    size = len(tokens)
    if size < LEAST:
        return 0
    for period in range(1, LONGEST + 1):
        span = max(LEAST, period * REPEATS)
        if span > size:
            break
        if tokens[-1] == tokens[-1 - period] and tokens[size - span + period :] == tokens[size - span : size - period]:
            return period
    return 0


def without_repetition(text: str) -> str:
    """Cut what the end of `text` repeats down to its first occurrence; text that does not repeat itself stays.

    The shortest period is taken: the end must hold it `REPEATED` times and be `SHORTEST` characters long at least. The
    last one may be cut short, as an answer is where it was stopped.
    """
    size = len(text)
    for period in range(1, size // REPEATED + 1):
        start = size - period
        while start > 0 and text[start - 1] == text[start - 1 + period]:
            start -= 1
        if size - start >= max(SHORTEST, period * REPEATED):
            return text[: start + period].rstrip()
    return text
