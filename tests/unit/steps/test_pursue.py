"""Going on where an answer was cut, and turning pages whose answer is doubtful."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from pipelines.engine.fake import FakeEngine, FakeOptions, fake_answer
from pipelines.engine.types import Completion, EngineRequest, Tiles
from pipelines.jobs.models import ItemResult, PackRef
from pipelines.jobs.outcomes import Outcome
from pipelines.kinds.base import Effort, MediaClass, MediumView
from pipelines.media.pack import tile_digests
from pipelines.media.turn import DEGREES, turn_tiles
from pipelines.steps.abort import Abort
from pipelines.steps.infer import LoadedPack, infer
from pipelines.steps.pursue import is_doubtful, joined, turned
from tests.unit.steps.test_infer import item, spec, succeeded, tools

GRID = (3, 2)
PAGE = np.random.default_rng(6).integers(0, 256, (7, 448, 448, 3), dtype=np.uint8)


@dataclass
class Page:
    """One page of 3 x 2 tiles and a thumbnail."""

    blank: bool = False
    grid: tuple[int, int] | None = GRID
    lying: int = 0
    """Clockwise, as the scanner got it."""

    def load(self, pack: PackRef) -> LoadedPack:
        pixels = turn_tiles(PAGE, GRID, self.lying)
        grid = self.grid if self.lying in {0, 180} or self.grid is None else self.grid[::-1]
        media = Tiles(pixels=pixels, counts=(7,), digests=tile_digests(pixels, (7,)))
        return LoadedPack(
            media=media, views=(MediumView(media_class=MediaClass.DOCUMENT, blank=self.blank, grid=grid),)
        )


def lies(request: EngineRequest) -> int:
    """By how many degrees the page in a request lies away from upright; what the scripted confidence goes by."""
    assert isinstance(request.media, Tiles)
    for degrees in (0, *DEGREES):
        if np.array_equal(request.media.pixels, turn_tiles(PAGE, GRID, degrees)):
            return degrees
    raise AssertionError("this is not the page, however it is turned")


CONFIDENCE = {0: -0.1, 90: -0.9, 180: -0.7, 270: -1.1}


def sure(request: EngineRequest) -> float:
    return CONFIDENCE[lies(request)]


class Asked:
    """A fake engine that notes what it is asked. The answer says how the page lies."""

    def __init__(self, **options: Any) -> None:
        self.requests: list[EngineRequest] = []
        answer = options.pop("answer", lambda request: f"it lies at {lies(request)} degrees")

        def note(request: EngineRequest) -> str:
            self.requests.append(request)
            return str(answer(request))

        self.engine = FakeEngine(FakeOptions(answer=note, **options))

    def run(self, page: Page, kind: str = "ocr", **parameters: Any) -> ItemResult:
        outcome: Outcome = infer(item(), spec(kind, **parameters), tools(self.engine, page), abort=Abort())
        self.engine.close()
        return succeeded(outcome).result


@pytest.mark.parametrize("lying", [90, 180, 270])
def test_a_page_that_lies_on_its_side_or_head_is_read_upright(lying: int) -> None:
    asked = Asked(mean_logprob=sure)
    result = asked.run(Page(lying=lying))
    assert result.text == "it lies at 0 degrees"
    assert result.flags == ("rotated",)
    assert result.output["rotation"] == 360 - lying
    assert result.mean_logprob == pytest.approx(-0.1)


def test_every_try_is_paid_for() -> None:
    """Four answers of five words over the same seven tiles."""
    asked = Asked(mean_logprob=sure)
    result = asked.run(Page(lying=90))
    assert len(asked.requests) == 4
    assert result.completion_tokens == 4 * 5
    single = Asked(mean_logprob=sure).run(Page())
    assert result.prompt_tokens == 4 * single.prompt_tokens
    assert result.provenance["requests"] == 4
    assert result.tiles == 7


def test_an_upright_page_costs_one_answer() -> None:
    asked = Asked(mean_logprob=sure)
    result = asked.run(Page())
    assert len(asked.requests) == 1
    assert result.flags == ()
    assert "rotation" not in result.output


def test_a_page_that_is_bad_however_it_lies_stays_as_it_is_and_says_so() -> None:
    asked = Asked(mean_logprob=lambda request: sure(request) - 2.0)
    result = asked.run(Page())
    assert len(asked.requests) == 4
    assert result.flags == ("low_confidence",)
    assert result.text == "it lies at 0 degrees"


def test_the_threshold_is_the_callers() -> None:
    asked = Asked(mean_logprob=sure)
    result = asked.run(Page(lying=180), low_confidence=-0.8)
    assert len(asked.requests) == 1
    assert result.flags == ()
    asked = Asked(mean_logprob=sure)
    assert asked.run(Page(lying=180), low_confidence=None).flags == ()
    assert len(asked.requests) == 1


def test_turning_can_be_switched_off() -> None:
    asked = Asked(mean_logprob=sure)
    assert asked.run(Page(lying=90), auto_rotate=False).flags == ("low_confidence",)
    assert len(asked.requests) == 1


def test_a_degenerate_answer_is_tried_on_each_side_and_an_empty_one_never_wins() -> None:
    def answer(request: EngineRequest) -> str:
        return {0: "the text", 90: "na " * 200, 180: "", 270: "ba " * 200}[lies(request)]

    asked = Asked(answer=answer, mean_logprob=lambda request: -0.3 if lies(request) == 0 else -0.01)
    result = asked.run(Page(lying=90), low_confidence=None)
    assert result.text == "the text"
    assert result.flags == ("rotated",)


def test_an_answer_that_stays_degenerate_keeps_what_it_said_once() -> None:
    asked = Asked(answer=lambda _: "Total 12 " + "na " * 200)
    result = asked.run(Page(grid=None))
    assert result.text == "Total 12 na"
    assert result.flags == ("degenerate",)
    assert result.finish_reason == "degenerate"
    assert len(asked.requests) == 1, "without a grid the tiles cannot be turned"


def test_without_log_probabilities_nothing_is_doubted() -> None:
    asked = Asked(mean_logprob=lambda _: None)
    result = asked.run(Page(lying=90))
    assert (result.flags, result.mean_logprob) == ((), None)
    assert len(asked.requests) == 1


def long_answer(_: EngineRequest) -> str:
    return " ".join(f"word{number}" for number in range(20))


def test_a_page_longer_than_its_limit_is_read_to_the_end() -> None:
    asked = Asked(answer=long_answer)
    result = asked.run(Page(), generation={"max_new_tokens": 8})
    assert result.text.split() == [f"word{number}" for number in range(20)]
    assert result.flags == ("continued",)
    assert result.finish_reason == "stop"
    assert result.completion_tokens == 20
    assert [request.prefix.text.split()[-1] for request in asked.requests if request.prefix] == ["word7", "word15"]


@pytest.mark.parametrize(("most", "words", "flags"), [(0, 6, ("truncated",)), (2, 18, ("truncated", "continued"))])
def test_going_on_is_bounded_and_what_is_still_cut_says_so(most: int, words: int, flags: tuple[str, ...]) -> None:
    asked = Asked(answer=long_answer)
    result = asked.run(Page(), generation={"max_new_tokens": 6}, max_continuations=most)
    assert len(result.text.split()) == words
    assert result.flags == flags
    assert result.finish_reason == "length"


def test_an_engine_that_cannot_go_on_is_not_asked_to() -> None:
    asked = Asked(answer=long_answer, continues=False)
    result = asked.run(Page(), generation={"max_new_tokens": 8})
    assert result.flags == ("truncated",)
    assert len(asked.requests) == 1


def test_a_full_context_ends_an_answer_without_losing_it() -> None:
    asked = Asked(answer=long_answer, tokens_per_tile=1, context_length=40)
    result = asked.run(Page(), generation={"max_new_tokens": 8}, max_continuations=9)
    assert result.flags == ("truncated", "continued")
    assert 8 < len(result.text.split()) < 20


def test_a_turned_page_goes_on_turned() -> None:
    asked = Asked(answer=long_answer, mean_logprob=sure)
    result = asked.run(Page(lying=90), generation={"max_new_tokens": 15})
    assert result.flags == ("continued", "rotated")
    assert lies(asked.requests[-1]) == 0
    assert len(result.text.split()) == 20
    assert len(asked.requests) == 5


def test_a_blank_page_is_answered_without_the_engine() -> None:
    asked = Asked()
    result = asked.run(Page(blank=True))
    assert asked.requests == []
    assert (result.text, result.flags, dict(result.output)) == ("", ("blank",), {"format": "text"})
    assert (result.prompt_tokens, result.completion_tokens, result.device_seconds, result.tiles) == (0, 0, 0, 0)
    assert result.mean_logprob is None
    assert result.media_hash == item().media_hash


def test_a_blank_page_is_asked_about_where_the_caller_or_the_kind_wants_it() -> None:
    asked = Asked(answer=fake_answer)
    assert asked.run(Page(blank=True), skip_blank=False).text
    asked = Asked(answer=fake_answer)
    assert asked.run(Page(blank=True), kind="caption").text
    assert len(asked.requests) == 1


def test_other_kinds_go_no_further_than_one_answer() -> None:
    asked = Asked(answer=long_answer, mean_logprob=lambda _: -9.0)
    result = asked.run(Page(), kind="caption", generation={"max_new_tokens": 8})
    assert result.flags == ("truncated",)
    assert len(asked.requests) == 1


def completion(**changes: Any) -> Completion:
    values: dict[str, Any] = {
        "request_id": "r",
        "text": "x",
        "finish_reason": "stop",
        "token_ids": (),
        "prompt_tokens": 1,
        "cached_tokens": 0,
        "completion_tokens": 1,
        "tiles": 1,
        "mean_logprob": None,
        "media_hash": "",
    }
    return Completion(**{**values, **changes})


def test_log_probabilities_are_weighed_by_their_tokens() -> None:
    before, more = completion(completion_tokens=3, mean_logprob=-1.0), completion(mean_logprob=-0.2, text="xy")
    both = joined(before, more)
    assert both.mean_logprob == pytest.approx(-0.8)
    assert (both.text, both.completion_tokens) == ("xy", 4)
    assert joined(before, replace(more, mean_logprob=None)).mean_logprob is None


@pytest.mark.parametrize(
    ("answer", "doubtful"),
    [
        (completion(mean_logprob=-0.5), True),
        (completion(mean_logprob=-0.3), False),
        (completion(mean_logprob=None), False),
        (completion(mean_logprob=-0.1, degenerate=True), True),
    ],
)
def test_doubt_is_little_confidence_or_repetition(answer: Completion, doubtful: bool) -> None:
    assert is_doubtful(answer, Effort(doubt=-0.4)) is doubtful
    assert is_doubtful(answer, Effort()) is answer.degenerate


def test_turned_media_have_digests_of_their_own() -> None:
    loaded = Page().load(item().pack)  # type: ignore[arg-type]  # the item has one
    digests: set[str] = set()
    for degrees in DEGREES:
        media = turned(loaded.media, loaded.views, degrees)
        assert media is not None
        digests.update(media.digests)
    assert len(digests) == 3
    assert turned(None, (), 90) is None
