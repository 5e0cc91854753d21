"""What a streaming client is sent, whatever happens to the item behind it."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from api.openai.pieces import Piece, Spoken


def test_a_retry_repeats_nothing() -> None:
    spoken = Spoken()
    sent = [spoken.hear(Piece(attempt=1, text=text)) for text in ("The ", "cat ")]
    sent += [spoken.hear(Piece(attempt=2, text=text)) for text in ("The ", "ca", "t sat", " down")]
    assert "".join(sent) == "The cat sat down"
    assert sent[2:4] == ["", ""]


def test_the_lost_attempt_is_not_heard_any_more() -> None:
    spoken = Spoken()
    spoken.hear(Piece(attempt=2, text="new"))
    assert spoken.hear(Piece(attempt=1, text=" old")) == ""
    assert spoken.text == "new"


def test_an_answer_that_was_made_otherwise_is_told_apart() -> None:
    spoken = Spoken()
    spoken.hear(Piece(attempt=1, text="one way"))
    assert spoken.hear(Piece(attempt=2, text="another")) == ""
    assert spoken.finish("another way") is None


@given(
    answer=st.text(max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    died_after=st.integers(0, 40),
    heard=st.integers(0, 12),
)
def test_what_is_sent_is_always_the_answer(answer: str, cuts: list[int], died_after: int, heard: int) -> None:
    """A first attempt that dies somewhere, a second that is heard up to some piece, the rest from the database."""
    edges = sorted({0, len(answer), *(min(cut, len(answer)) for cut in cuts)})
    pieces = [answer[start:end] for start, end in itertools.pairwise(edges)]
    spoken = Spoken()
    sent = spoken.hear(Piece(attempt=1, text=answer[:died_after]))
    for piece in pieces[:heard]:
        sent += spoken.hear(Piece(attempt=2, text=piece))
    rest = spoken.finish(answer)
    assert rest is not None
    assert sent + rest == answer
