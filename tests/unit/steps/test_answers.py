"""The name of an answer: equal for equal questions, another for anything that could change the answer."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engine.fake import FakeEngine
from pipelines.engine.types import EngineInfo
from pipelines.jobs.models import ClaimedItem, Document, JobPriority, JobSpec
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass, MediumView
from pipelines.steps.answers import key_of

VIEWS = (MediumView(media_class=MediaClass.IMAGE),)
BASE: dict[str, Any] = {
    "tenant": 1,
    "media": "m1",
    "weights": "w1",
    "dtype": "bfloat16",
    "attention": "sdpa",
    "preprocessing": "1",
    "scope": "1.0 none",
    "kind": "ocr",
    "parameters": {"max_tiles": 6, "generation": {"max_new_tokens": 100}},
}
OTHERS: dict[str, Any] = {
    "tenant": st.integers(2, 2**64),
    "media": st.text(min_size=3, max_size=5),
    "weights": st.text(min_size=3, max_size=5),
    "dtype": st.sampled_from(["float16", "float32"]),
    "attention": st.just("eager"),
    "preprocessing": st.sampled_from(["2", "1.1"]),
    "scope": st.sampled_from(["1.1 none", "1.0 int8"]),
    "kind": st.just("caption"),
    "parameters": st.one_of(
        st.integers(7, 40).map(lambda n: {"max_tiles": n, "generation": {"max_new_tokens": 100}}),
        st.integers(101, 999).map(lambda n: {"max_tiles": 6, "generation": {"max_new_tokens": n}}),
        st.text(min_size=1, max_size=20).map(
            lambda words: {"max_tiles": 6, "prompt": words, "generation": {"max_new_tokens": 100}}
        ),
        st.integers(0, 2**63 - 1).map(
            lambda seed: {
                "max_tiles": 6,
                "generation": {"max_new_tokens": 100, "do_sample": True, "seed": seed},
            }
        ),
    ),
}


@pytest.fixture(scope="module")
def info() -> Iterator[EngineInfo]:
    engine = FakeEngine()
    yield engine.info
    engine.close()


def key(info: EngineInfo, *, views: tuple[MediumView, ...] = VIEWS, job: int = 1, seq: int = 0, **facts: Any) -> Any:
    about = {**BASE, **facts}
    kind = registry.get(about["kind"])
    parameters = kind.parse_parameters(about["parameters"])
    job_id = uuid.UUID(int=job)
    spec = JobSpec(
        job_id=job_id,
        tenant_id=uuid.UUID(int=about["tenant"]),
        kind=about["kind"],
        parameters=about["parameters"],
        source={},
        priority=JobPriority.NORMAL,
    )
    item = ClaimedItem(
        job_id=job_id,
        seq=seq,
        attempt=1,
        losses=0,
        fails=0,
        page=None,
        document=Document(job_id=job_id, doc=seq, name=f"{seq}", media=()),
        media_hash=about["media"],
    )
    engine = replace(info, weights_hash=about["weights"], dtype=about["dtype"], attention=about["attention"])
    return key_of(
        item,
        spec,
        parameters,
        kind.dialogue(parameters, views),
        engine,
        preprocessing_version=about["preprocessing"],
        scope=about["scope"],
    )


@settings(deadline=None)
@given(job=st.integers(1, 2**64), seq=st.integers(0, 1000))
def test_an_equal_question_has_an_equal_name_whatever_job_asks_it(info: EngineInfo, job: int, seq: int) -> None:
    assert key(info, job=job, seq=seq) == key(info)


@settings(deadline=None)
@given(st.data())
def test_anything_that_could_change_the_answer_changes_its_name(info: EngineInfo, data: st.DataObject) -> None:
    fact = data.draw(st.sampled_from(sorted(OTHERS)))
    # `caption` has no parameter `max_tiles` of the same meaning to compare with: its own defaults stand in.
    changed = {fact: data.draw(OTHERS[fact])}
    if fact == "kind":
        changed["parameters"] = {"generation": {"max_new_tokens": 100}}
    other = key(info, **changed)
    assert other is not None
    assert other != key(info)


def test_frames_of_a_video_are_not_pictures(info: EngineInfo) -> None:
    image = key(info, kind="chat", parameters=_chat())
    video = key(
        info,
        kind="chat",
        parameters=_chat(),
        views=(MediumView(media_class=MediaClass.VIDEO, images=1),),
    )
    assert image != video


def test_two_questions_that_read_alike_when_joined_are_two(info: EngineInfo) -> None:
    one = key(info, kind="chat", parameters=_chat("a", "b", "c"))
    other = key(info, kind="chat", parameters=_chat("ab", "", "c"))
    assert one != other


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({}, True),
        ({"cache": False}, False),
        ({"generation": {"do_sample": True}}, False),
        ({"generation": {"do_sample": True, "seed": 7}}, True),
        ({"generation": {"temperature": 0.5}}, True),  # without do_sample it changes nothing, and is greedy
    ],
)
def test_only_what_is_not_left_to_chance_has_a_name(info: EngineInfo, parameters: dict[str, Any], named: bool) -> None:
    assert (key(info, parameters=parameters) is not None) == named


def _chat(*turns: str) -> dict[str, Any]:
    turns = turns or ("What is it?",)
    roles = ("user", "assistant", "user")
    return {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]}
