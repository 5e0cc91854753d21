"""What PREPARE learnt of media comes back with their pack."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.kinds.base import MediaClass, MediumView
from pipelines.media.pack import TilePack, decode, encode
from pipelines.steps.prepare import view_of, views_of, with_views

PACK = TilePack.of(np.zeros((1, 4, 4, 3), np.uint8), (1,))
views = st.builds(
    MediumView,
    media_class=st.sampled_from(MediaClass),
    images=st.integers(1, 40),
    blank=st.booleans(),
    grid=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
)


@given(st.lists(views, max_size=4).map(tuple))
def test_views_come_back(written: tuple[MediumView, ...]) -> None:
    assert views_of(decode(encode(with_views(PACK, written))).meta) == written


def test_a_view_is_what_the_decoder_told() -> None:
    meta = {"blank": "yes", "grid": "3x2"}
    told = view_of(TilePack.of(PACK.tiles, (1,), meta), MediaClass.DOCUMENT)
    assert told == MediumView(media_class=MediaClass.DOCUMENT, blank=True, grid=(3, 2))
    assert view_of(PACK, MediaClass.IMAGE) == MediumView(media_class=MediaClass.IMAGE)


def test_a_pack_of_before_says_less_and_is_read() -> None:
    assert views_of({"views": '[{"class": "image", "images": 2}]'}) == (
        MediumView(media_class=MediaClass.IMAGE, images=2),
    )
