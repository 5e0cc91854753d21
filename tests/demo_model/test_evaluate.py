from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from deploy.demo.scenes import random_scene
from tests.demo_model.evaluate import edits, facts


@given(a=st.text("abc", max_size=8), b=st.text("abc", max_size=8))
def test_edits_are_a_distance(a: str, b: str) -> None:
    assert edits(a, b) == edits(b, a)
    assert (edits(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= edits(a, b) <= max(len(a), len(b))


def test_one_insertion_one_deletion_and_one_change_are_three_edits() -> None:
    assert edits("kitten", "sitting") == 3


def test_a_caption_claims_four_facts_a_thing_and_their_number() -> None:
    found = facts("A large red circle at the top left. A small blue star at the bottom.")
    assert found == {
        "number": "2",
        "size 0": "large",
        "colour 0": "red",
        "shape 0": "circle",
        "place 0": "top left",
        "size 1": "small",
        "colour 1": "blue",
        "shape 1": "star",
        "place 1": "bottom",
    }


def test_things_alike_claim_their_number_and_kind() -> None:
    assert facts("Three small red stars.") == {
        "number": "Three",
        "size": "small",
        "colour": "red",
        "shape": "stars",
    }


def test_every_drawn_caption_has_facts_for_each_of_its_things() -> None:
    for seed in range(50):
        scene = random_scene(random.Random(seed))
        alike = not scene.caption.startswith("A ")
        assert len(facts(scene.caption)) == (4 if alike else 1 + 4 * len(scene.things))
