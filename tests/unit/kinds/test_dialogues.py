from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.engine.types import Completion, FinishReason
from pipelines.jobs.errors import InvalidParameter
from pipelines.kinds.base import Effort, MediaClass, MediumView, placeholders
from pipelines.kinds.caption import KIND as CAPTION
from pipelines.kinds.chat import KIND as CHAT
from pipelines.kinds.ocr import KIND as OCR
from pipelines.kinds.video_qa import KIND as VIDEO_QA

IMAGE = MediumView(media_class=MediaClass.IMAGE)


def video(frames: int) -> MediumView:
    return MediumView(media_class=MediaClass.VIDEO, images=frames)


def completion(text: str, reason: FinishReason = FinishReason.STOP, *, degenerate: bool = False) -> Completion:
    return Completion(
        request_id="r",
        text=text,
        finish_reason=reason,
        token_ids=(),
        prompt_tokens=1,
        cached_tokens=0,
        completion_tokens=1,
        tiles=1,
        mean_logprob=None,
        media_hash="",
        degenerate=degenerate,
    )


def test_one_image_is_written_as_the_card_writes_it() -> None:
    assert placeholders((IMAGE,)) == "<image>\n"


def test_several_images_are_numbered() -> None:
    assert placeholders((IMAGE, IMAGE)) == "Image-1: <image>\nImage-2: <image>\n"


def test_the_frames_of_a_video_are_numbered() -> None:
    assert placeholders((video(3),)) == "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\n"


@given(st.lists(st.one_of(st.just(IMAGE), st.integers(1, 5).map(video)), max_size=6))
def test_there_is_one_placeholder_for_each_image_and_frame(media: list[MediumView]) -> None:
    assert placeholders(tuple(media)).count("<image>") == sum(view.images for view in media)


def test_independent_questions_each_carry_the_frames() -> None:
    parameters = VIDEO_QA.parse_parameters({"questions": ["a?", "b?"]})
    dialogue = VIDEO_QA.dialogue(parameters, (video(2),))
    assert dialogue.questions == ("Frame1: <image>\nFrame2: <image>\na?", "Frame1: <image>\nFrame2: <image>\nb?")
    assert not dialogue.conversation


def test_a_conversation_carries_the_frames_once() -> None:
    parameters = VIDEO_QA.parse_parameters({"questions": ["a?", "b?"], "mode": "conversation"})
    dialogue = VIDEO_QA.dialogue(parameters, (video(1),))
    assert dialogue.questions == ("Frame1: <image>\na?", "b?")
    assert dialogue.conversation


def test_a_caption_says_video_for_a_video() -> None:
    parameters = CAPTION.parse_parameters({})
    assert CAPTION.dialogue(parameters, (video(1),)).questions[0].endswith("Please describe the video shortly.")
    assert CAPTION.dialogue(parameters, (IMAGE,)).questions[0].endswith("Please describe the image shortly.")


def test_an_answer_that_is_not_json_is_kept_and_flagged() -> None:
    parameters = OCR.parse_parameters({"output": "json"})
    output = OCR.parse(parameters, (completion("no json here"),))
    assert output.text == "no json here"
    assert output.flags == ("invalid_json",)


def test_a_cut_off_answer_is_flagged() -> None:
    output = OCR.parse(OCR.parse_parameters({}), (completion("half a pa", FinishReason.LENGTH),))
    assert output.flags == ("truncated",)


def test_a_degenerate_answer_is_flagged() -> None:
    output = OCR.parse(OCR.parse_parameters({}), (completion("a a a", degenerate=True),))
    assert output.flags == ("degenerate",)


def test_what_a_degenerate_page_repeats_is_kept_once() -> None:
    output = OCR.parse(OCR.parse_parameters({}), (completion("Total 12\n" + "na " * 99, degenerate=True),))
    assert (output.text, output.flags) == ("Total 12\nna", ("degenerate",))


@pytest.mark.parametrize("form", ["text", "markdown", "json"])
def test_a_blank_page_has_no_text_in_any_form(form: str) -> None:
    output = OCR.blank(OCR.parse_parameters({"output": form}))
    assert output is not None
    assert output.text == ""
    assert output.data["format"] == form
    assert OCR.blank(OCR.parse_parameters({"skip_blank": False})) is None


def test_only_ocr_goes_beyond_one_answer() -> None:
    effort = OCR.effort(OCR.parse_parameters({"max_continuations": 5, "low_confidence": None, "auto_rotate": False}))
    assert effort == Effort(continuations=5)
    assert CAPTION.effort(CAPTION.parse_parameters({})) == Effort()
    assert CAPTION.blank(CAPTION.parse_parameters({})) is None


def test_chat_history_pairs_up() -> None:
    parameters = CHAT.parse_parameters(
        {
            "messages": [
                {"role": "system", "content": "be short"},
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "two"},
                {"role": "user", "content": "three"},
            ]
        }
    )
    dialogue = CHAT.dialogue(parameters, (IMAGE,))
    assert dialogue.system == "be short"
    assert dialogue.history == (("<image>\none", "two"),)
    assert dialogue.questions == ("three",)


def test_marked_media_stand_where_they_are_marked() -> None:
    parameters = CHAT.parse_parameters({"messages": [{"role": "user", "content": "<image> against <video>"}]})
    dialogue = CHAT.dialogue(parameters, (IMAGE, video(2)))
    assert dialogue.questions == ("<image> against Frame1: <image>\nFrame2: <image>",)


@pytest.mark.parametrize("content", ["<image>", "<image><image><image>", "<video> and <image>"])
def test_marks_that_do_not_match_the_media_are_refused(content: str) -> None:
    parameters = CHAT.parse_parameters({"messages": [{"role": "user", "content": content}]})
    with pytest.raises(InvalidParameter, match=r"mark|medium"):
        CHAT.dialogue(parameters, (IMAGE, IMAGE))


def test_text_parts_that_spell_a_placeholder_stay_text() -> None:
    content = [{"type": "text", "text": "what does <image> mean?"}, {"type": "media", "index": 0}]
    parameters = CHAT.parse_parameters({"messages": [{"role": "user", "content": content}]})
    (question,) = CHAT.dialogue(parameters, (IMAGE,)).questions
    assert question.count("<image>") == 1
    assert question.startswith("what does <\N{WORD JOINER}image> mean?")


def test_an_assistant_turn_cannot_smuggle_a_placeholder() -> None:
    parameters = CHAT.parse_parameters(
        {
            "messages": [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "<image>"},
                {"role": "user", "content": "two"},
            ]
        }
    )
    dialogue = CHAT.dialogue(parameters, ())
    assert "<image>" not in dialogue.history[0][1]
