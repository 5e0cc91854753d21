"""Which of our media types a client likes best (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence


def best(accept: str, offers: Sequence[str]) -> str | None:
    """The offer with the highest quality, the earlier of equals; None where none is accepted."""
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    scored = [(_quality(offer, ranges), -index, offer) for index, offer in enumerate(offers)]
    quality, _, offer = max(scored)
    return offer if quality > 0 else None


def _range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            try:
                quality = min(1.0, max(0.0, float(value)))
            except ValueError:
                quality = 0.0
    return name.lower(), quality


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The most specific matching range decides."""
    group = offer.partition("/")[0]
    for wanted in (offer, f"{group}/*", "*/*"):
        for name, quality in ranges:
            if name == wanted:
                return quality
    return 0.0
