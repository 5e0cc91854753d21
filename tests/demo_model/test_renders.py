from __future__ import annotations

import itertools
import random
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.demo.clips import KINDS, random_clip, write_mp4
from deploy.demo.documents import MONO, SANS, Style, Wear, draw_lines, random_wear, worn
from deploy.demo.scenes import draw_things, random_scene
from tests.demo_model.labels import (
    CHARACTER_CLASS,
    GRID,
    PATCH,
    THING_CLASS,
    TOKENS,
    by_token,
    page_labels,
    thing_labels,
    thing_token,
    tiles_of,
)
from tests.demo_model.pages import PageKind, random_page, words

BUNDLED = PageKind(face=SANS)  # faces that come with the project, so that the test runs on any machine


def test_the_same_seed_draws_the_same_page() -> None:
    one, two = (random_page(random.Random(5), BUNDLED, difficulty=1.0) for _ in range(2))
    assert one.text == two.text
    assert one.places == two.places
    assert one.image.tobytes() == two.image.tobytes()


def test_another_seed_draws_another_page() -> None:
    one, two = (random_page(random.Random(seed), BUNDLED, difficulty=0.5) for seed in (5, 6))
    assert one.text != two.text


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), face=st.sampled_from([SANS, MONO]))
def test_every_character_has_a_place_on_its_own_ink(seed: int, face: Path) -> None:
    page = draw_lines(["Hamburg 1234", "MWH 88"], style=Style(face=face, size=40, top=60, left=30))
    skew = random.Random(seed).uniform(-2, 2)
    page = worn(page, Wear(skew=skew), paper=(255, 255, 255))
    grey = np.asarray(page.image.convert("L"))
    assert len(page.places) == len(page.text)
    for character, (x, y) in zip(page.text, page.places, strict=True):
        if character.isalnum():  # something dark within a third of the type size of the centre
            near = grey[int(y) - 13 : int(y) + 14, int(x) - 13 : int(x) + 14]
            assert near.min() < 128, character


def test_dense_labels_hold_each_character_in_the_patch_of_its_centre() -> None:
    page = draw_lines(["ab", "c"], style=Style(face=MONO, size=50, line_height=70, left=10, top=10))
    labels, tokens = page_labels(page)
    found = {}
    for character, (x, y), token in zip(page.text, page.places, tokens, strict=True):
        row, column = int(y) // PATCH, int(x) // PATCH
        assert token == row // 2 * (GRID // 2) + column // 2
        if character != "\n":
            found[row * GRID + column] = CHARACTER_CLASS[character]
    assert {int(at): int(labels[0, at, 0]) for at in np.flatnonzero(labels[0, :, 0])} == found


def test_characters_of_the_second_tile_point_past_the_first_tiles_tokens() -> None:
    page = draw_lines(["x" * 40], columns=2, style=Style(face=MONO, size=32))
    _, tokens = page_labels(page)
    assert all((token >= TOKENS) == (x >= 448) for token, (x, _) in zip(tokens, page.places, strict=True))


def test_tiles_go_row_by_row_with_the_thumbnail_last() -> None:
    page = draw_lines(["tiles"], columns=2, rows=2, style=Style())
    whole = np.asarray(page.image)
    tiles = tiles_of(page.image)
    assert tiles.shape == (5, 448, 448, 3)
    assert np.array_equal(np.block([[[tiles[0]], [tiles[1]]], [[tiles[2]], [tiles[3]]]]), whole)


def test_regrouping_by_token_keeps_the_four_patches_of_a_square_together() -> None:
    patches = np.arange(GRID * GRID).reshape(1, -1)
    assert by_token(patches)[0, 1].tolist() == [2, 3, GRID + 2, GRID + 3]


def test_no_held_out_word_is_trained_on() -> None:
    assert not set(words(held_out=True)) & set(words(held_out=False))
    assert len(words(held_out=True)) > 500


def test_light_wear_stays_within_two_degrees() -> None:
    draw = random.Random(1)
    assert all(abs(random_wear(draw).skew) <= 2 for _ in range(200))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_a_scene_caption_names_what_was_drawn(seed: int) -> None:
    scene = random_scene(random.Random(seed))
    labels = thing_labels(scene.things)
    for thing in scene.things:
        assert thing.colour in scene.caption
        assert thing.shape in scene.caption
        row, column = int(thing.y) // PATCH, int(thing.x) // PATCH
        assert labels[row * GRID + column] == THING_CLASS[thing.shape, thing.colour, thing.size]
        assert 0 <= thing_token(thing) < TOKENS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [4, 8, 32])
def test_clips_answer_what_their_frames_show(kind: str, frames: int) -> None:
    for seed in range(20):
        clip = random_clip(random.Random(seed), frames=frames, kind=kind)
        assert len(clip.frames) == frames
        if kind == "blink":
            seen = [bool(things) for things in clip.frames]
            returns = sum(later and not earlier for earlier, later in itertools.pairwise(seen))
            assert clip.answer == str(returns)
        elif kind == "first":
            assert clip.answer == next(things for things in clip.frames if things)[0].shape
        elif kind == "way":
            first, last = clip.frames[0][0], clip.frames[-1][0]
            across, down = last.x - first.x, last.y - first.y
            ways = {"left": across < -100, "right": across > 100, "up": down < -100, "down": down > 100}
            assert [way for way, is_so in ways.items() if is_so] == [clip.answer]


def test_evenly_spaced_samples_of_a_clip_file_meet_each_frame_once(tmp_path: Path) -> None:
    clip = random_clip(random.Random(3), frames=8, kind="way")
    write_mp4(clip, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    last, segments = len(frames) - 1, 8
    step = last / segments
    for number, things in enumerate(clip.frames):
        shown = frames[int(step / 2 + np.round(step * number))].astype(int)
        drawn = np.asarray(draw_things(things, clip.ground)).astype(int)
        assert np.abs(shown - drawn).mean() < 4
