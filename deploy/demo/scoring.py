"""How far an answer is from the expected text."""

from __future__ import annotations


def edit_distance(left: str, right: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions (Wagner and Fischer 1974, two rows)."""
    previous = list(range(len(right) + 1))
    for row, mine in enumerate(left, 1):
        current = [row]
        for column, other in enumerate(right, 1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (mine != other)))
        previous = current
    return previous[-1]


def character_error_rate(answer: str, expected: str) -> float:
    """Edits a character of the expected text; 0 for an equal answer, and above 1 where much was invented."""
    return edit_distance(answer, expected) / max(1, len(expected))
