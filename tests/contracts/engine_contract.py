"""What every `Engine` must do. A test class derives from `EngineContract` and names its engine and its media."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.engine.errors import BadRequest, EmptyPrompt, EngineStopped, RequestCancelled
from pipelines.engine.types import (
    Accepts,
    AnswerPrefix,
    Engine,
    EngineRequest,
    FinishReason,
    GenerationParams,
    Priority,
    Tiles,
)

Media = Callable[[int], object]
_SECONDS = 60


class EngineContract:
    """Fixtures to give: `engine` (shared), `slow` (makes one the test closes), `media` (by number), `other_media`."""

    @staticmethod
    def ask(number: int, media: object = None, **changes: object) -> EngineRequest:
        values: dict[str, object] = {
            "request_id": f"r{number}",
            "question": f"What is in picture {number}?",
            "media": media,
            "media_hash": f"hash-{number}",
            "params": GenerationParams(max_new_tokens=8 + number % 5),
        }
        return EngineRequest(**{**values, **changes})  # type: ignore[arg-type]

    def test_it_says_what_it_is(self, engine: Engine) -> None:
        info = engine.info
        assert info.accepts in Accepts
        assert info.slots >= 1
        assert info.model
        assert info.weights_hash
        assert engine.healthy()

    def test_an_answer_names_its_request_and_its_medium(self, engine: Engine, media: Media) -> None:
        completion = engine.submit(self.ask(1, media(1))).future.result(_SECONDS)
        assert (completion.request_id, completion.media_hash) == ("r1", "hash-1")
        assert len(completion.token_ids) in (0, completion.completion_tokens), "a server does not tell its tokens"
        assert completion.completion_tokens > 0
        assert completion.prompt_tokens > 0
        assert completion.total_seconds >= completion.first_token_seconds >= 0
        assert not completion.degenerate

    def test_a_greedy_answer_is_repeatable(self, engine: Engine, media: Media) -> None:
        first, second = (engine.submit(self.ask(2, media(2))).future.result(_SECONDS) for _ in range(2))
        assert (first.text, first.token_ids, first.finish_reason) == (
            second.text,
            second.token_ids,
            second.finish_reason,
        )

    def test_the_answer_depends_on_the_question(self, engine: Engine) -> None:
        answers = {engine.submit(self.ask(n, question=f"Number {n}?")).future.result(_SECONDS).text for n in range(4)}
        assert len(answers) > 1

    def test_no_answer_goes_to_another_request(self, engine: Engine, media: Media) -> None:
        """Forty requests from eight threads, in shuffled order and of mixed lengths, each with its own medium."""
        requests = [self.ask(n, media(n % 7), media_hash=f"hash-{n}") for n in range(40)]
        alone = {each.request_id: engine.submit(each).future.result(_SECONDS).text for each in requests}
        shuffled = random.Random(5).sample(requests, len(requests))
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda each: engine.submit(each).future.result(_SECONDS), shuffled))
        for request, completion in zip(shuffled, together, strict=True):
            assert completion.request_id == request.request_id
            assert completion.media_hash == request.media_hash
            assert completion.text == alone[request.request_id]

    def test_the_streamed_pieces_are_the_answer(self, engine: Engine, media: Media) -> None:
        handle = engine.submit(self.ask(3, media(3)))
        pieces = list(handle.stream())
        assert "".join(pieces) == handle.future.result(_SECONDS).text

    def test_the_callback_gets_the_answer(self, engine: Engine) -> None:
        pieces: list[str] = []
        completion = engine.submit(self.ask(4), on_text=pieces.append).future.result(_SECONDS)
        assert "".join(pieces) == completion.text

    def test_an_answer_ends_at_its_token_limit(self, engine: Engine) -> None:
        completion = engine.submit(self.ask(5, params=GenerationParams(max_new_tokens=2))).future.result(_SECONDS)
        assert completion.finish_reason is FinishReason.LENGTH
        assert completion.completion_tokens <= 2

    @pytest.mark.parametrize("cut", [1, 3, 5])
    def test_an_answer_that_was_cut_goes_on_as_if_it_had_not_been(self, engine: Engine, media: Media, cut: int) -> None:
        limit = 9
        asked = [self.ask(13, media(2), params=GenerationParams(max_new_tokens=size)) for size in (limit, cut)]
        whole, first = (engine.submit(request).future.result(_SECONDS) for request in asked)
        assert first.finish_reason is FinishReason.LENGTH
        prefix = AnswerPrefix(text=first.text, token_ids=first.token_ids)
        rest = GenerationParams(max_new_tokens=limit - first.completion_tokens)
        handle = engine.submit(self.ask(13, media(2), params=rest, prefix=prefix))
        pieces = list(handle.stream())
        joined = handle.future.result(_SECONDS)
        assert (joined.text, joined.token_ids) == (whole.text, whole.token_ids)
        assert joined.finish_reason is whole.finish_reason
        assert first.completion_tokens + joined.completion_tokens == whole.completion_tokens
        assert whole.text.endswith("".join(pieces))
        assert joined.prompt_tokens >= whole.prompt_tokens

    def test_priorities_and_groups_are_taken(self, engine: Engine) -> None:
        handles = [engine.submit(self.ask(n, priority=each, group=f"g{n}")) for n, each in enumerate(Priority)]
        assert all(handle.future.result(_SECONDS).text is not None for handle in handles)

    @pytest.mark.parametrize(
        "params",
        [
            GenerationParams(max_new_tokens=0),
            GenerationParams(temperature=0.0, do_sample=True),
            GenerationParams(top_p=1.5),
            GenerationParams(top_k=-1),
            GenerationParams(repetition_penalty=float("nan")),
            GenerationParams(stop=("",)),
        ],
    )
    def test_options_out_of_range_are_refused_at_once(self, engine: Engine, params: GenerationParams) -> None:
        with pytest.raises(BadRequest):
            engine.submit(self.ask(6, params=params))

    def test_an_empty_prompt_is_refused_at_once(self, engine: Engine) -> None:
        with pytest.raises(EmptyPrompt):
            engine.submit(self.ask(7, question="  "))

    def test_media_of_the_other_kind_are_refused_at_once(self, engine: Engine, other_media: object) -> None:
        assert isinstance(other_media, Tiles) != (engine.info.accepts is Accepts.TILES)
        with pytest.raises(BadRequest):
            engine.submit(self.ask(8, other_media))

    def test_cancelling_ends_a_request_and_no_other(self, slow: Callable[[], Engine], media: Media) -> None:
        engine = slow()
        victim = engine.submit(self.ask(9, media(1), params=GenerationParams(max_new_tokens=2000)))
        neighbour = engine.submit(self.ask(10, media(2)))
        victim.cancel()
        victim.cancel()
        with pytest.raises(RequestCancelled):
            victim.future.result(_SECONDS)
        with pytest.raises(RequestCancelled):
            list(victim.stream())
        assert neighbour.future.result(_SECONDS).text is not None
        neighbour.cancel()
        assert neighbour.future.result(0).request_id == "r10"
        engine.close()

    def test_closing_ends_what_is_unanswered(self, slow: Callable[[], Engine]) -> None:
        engine = slow()
        handles = [engine.submit(self.ask(n, params=GenerationParams(max_new_tokens=2000))) for n in range(30)]
        engine.close(timeout=20)
        engine.close()
        assert not engine.healthy()
        for handle in handles:
            if not (error := handle.future.exception(_SECONDS)):
                continue
            assert isinstance(error, EngineStopped)
        assert any(handle.future.exception(0) for handle in handles)
        with pytest.raises(EngineStopped):
            engine.submit(self.ask(1))

    def test_a_future_cannot_be_cancelled_behind_the_engines_back(self, engine: Engine) -> None:
        handle = engine.submit(self.ask(11))
        assert not handle.future.cancel()
        assert handle.future.result(_SECONDS).request_id == "r11"

    def test_the_counters_settle(self, engine: Engine) -> None:
        before = engine.stats()
        engine.submit(self.ask(12)).future.result(_SECONDS)
        done = threading.Event()
        for _ in range(200):
            after = engine.stats()
            if after.waiting == after.running == 0 and after.generated_tokens > before.generated_tokens:
                done.set()
                break
            done.wait(0.02)
        assert done.is_set()
