"""Every kind, also one added later, meets this: its examples validate, ask for all their media, parse as they say."""

from __future__ import annotations

import pytest

from pipelines.engine.types import Completion, FinishReason
from pipelines.kinds import registry
from pipelines.kinds.base import Example
from pipelines.kinds.registry import AnyKind

CASES = [
    pytest.param(kind, example, id=f"{kind.name}: {example.title}")
    for kind in registry.all_kinds()
    for example in kind.examples
]


@pytest.mark.parametrize("kind", registry.all_kinds(), ids=lambda kind: kind.name)
def test_a_kind_describes_itself_and_every_parameter(kind: AnyKind) -> None:
    assert kind.title
    assert kind.examples
    assert kind.media
    for name, field in kind.Parameters.model_fields.items():
        assert field.description, f"{kind.name}.{name} has no description"


@pytest.mark.parametrize(("kind", "example"), CASES)
def test_an_example_asks_for_each_of_its_images_once(kind: AnyKind, example: Example) -> None:
    parameters = kind.parse_parameters(kind.validate(example.parameters))
    dialogue = kind.dialogue(parameters, example.media)
    images = sum(view.images for view in example.media)
    if dialogue.conversation or dialogue.history:
        text = "".join([*(user for user, _ in dialogue.history), *dialogue.questions])
        assert text.count("<image>") == images
    else:
        assert [question.count("<image>") for question in dialogue.questions] == [images] * len(dialogue.questions)
    assert {view.media_class for view in example.media} <= kind.media


@pytest.mark.parametrize(("kind", "example"), CASES)
def test_an_example_parses_to_its_output(kind: AnyKind, example: Example) -> None:
    parameters = kind.parse_parameters(example.parameters)
    answers = tuple(
        Completion(
            request_id="r",
            text=text,
            finish_reason=FinishReason.STOP,
            token_ids=(),
            prompt_tokens=1,
            cached_tokens=0,
            completion_tokens=1,
            tiles=1,
            mean_logprob=-0.1,
            media_hash="",
        )
        for text in example.answers
    )
    assert kind.parse(parameters, answers) == example.output
