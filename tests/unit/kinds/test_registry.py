from __future__ import annotations

import sys
from pathlib import Path

import pytest

import pipelines.kinds
from pipelines.jobs.errors import InvalidParameter, UnknownKind
from pipelines.kinds import registry

FIFTH = '''
from pydantic import Field
from pipelines.kinds.base import Dialogue, Kind, KindParameters, MediaClass, Output, Preprocessing, placeholders


class CountParameters(KindParameters):
    """Parameters of `count`."""

    thing: str = Field("objects")


class Count(Kind[CountParameters]):
    """How many things are in an image."""

    name = "count"
    title = "Count things"
    media = frozenset({MediaClass.IMAGE})
    Parameters = CountParameters
    examples = ()

    def preprocessing(self, parameters):
        return Preprocessing()

    def dialogue(self, parameters, media):
        return Dialogue(questions=(placeholders(media) + f"How many {parameters.thing}?",))

    def parse(self, parameters, answers):
        return Output(text=answers[0].text)


KIND = Count()
'''


def test_the_registry_finds_the_four_kinds() -> None:
    assert {kind.name for kind in registry.all_kinds()} >= {"ocr", "caption", "video_qa", "chat"}


def test_an_unknown_kind_names_those_there_are() -> None:
    with pytest.raises(UnknownKind, match=r"caption, chat, .*ocr, video_qa"):
        registry.get("translate")


def test_adding_a_kind_is_adding_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "count.py").write_text(FIFTH)
    monkeypatch.setattr(pipelines.kinds, "__path__", [*pipelines.kinds.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_kinds", {})
    try:
        kind = registry.get("count")
        assert kind.validate({"thing": "ducks"})["thing"] == "ducks"
        assert "count" in {each.name for each in registry.all_kinds()}
    finally:
        sys.modules.pop("pipelines.kinds.count", None)


@pytest.mark.parametrize(
    ("kind", "parameters", "param"),
    [
        ("ocr", {"max_tiles": 41}, "parameters.max_tiles"),
        ("ocr", {"max_tilez": 4}, "parameters.max_tilez"),
        ("ocr", {"generation": {"top_q": 1}}, "parameters.generation.top_q"),
        ("video_qa", {}, "parameters.questions"),
        ("video_qa", {"questions": ["  "]}, "parameters.questions.0"),
        ("caption", {"bound": [9, 3]}, "parameters.bound"),
        ("video_qa", {"questions": ["x"], "bound": [-1, 3]}, "parameters.bound"),
        ("chat", {"messages": [{"role": "assistant", "content": "hi"}]}, "parameters"),
        ("chat", {"messages": [{"role": "system", "content": "be kind"}]}, "parameters"),
    ],
)
def test_a_bad_parameter_is_named(kind: str, parameters: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        registry.get(kind).validate(parameters)
    assert caught.value.param == param
    assert caught.value.message.startswith("parameters")


def test_validated_parameters_are_complete_and_stable() -> None:
    ocr = registry.get("ocr")
    once = ocr.validate({"max_tiles": 6})
    assert once["generation"]["max_new_tokens"] == 1024
    assert ocr.validate(once) == once
