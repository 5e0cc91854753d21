from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from deploy.demo.tokenizer import (
    CHARACTERS,
    OCR_QUESTION,
    SYSTEM_MESSAGE,
    added_tokens,
    character_ids,
    model_bytes,
    pieces,
    vocabulary_size,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    loaded = sentencepiece.SentencePieceProcessor()
    loaded.LoadFromSerializedProto(model_bytes())
    return loaded


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\x00")))
def test_any_text_comes_back_unchanged(processor: sentencepiece.SentencePieceProcessor, text: str) -> None:
    assert processor.DecodeIds(processor.EncodeAsIds(text)) == text


def test_each_printable_character_and_the_newline_is_one_piece(
    processor: sentencepiece.SentencePieceProcessor,
) -> None:
    assert {c: processor.EncodeAsIds(c) for c in CHARACTERS} == {c: [i] for c, i in character_ids().items()}


@pytest.mark.parametrize("phrase", [SYSTEM_MESSAGE, OCR_QUESTION])
def test_fixed_phrases_of_the_prompt_are_one_piece(
    processor: sentencepiece.SentencePieceProcessor, phrase: str
) -> None:
    assert len(processor.EncodeAsIds(phrase)) == 1


def test_chat_tokens_override_the_last_pieces_and_image_tokens_follow_them(
    processor: sentencepiece.SentencePieceProcessor,
) -> None:
    ids = list(added_tokens().values())
    last = processor.vocab_size()
    assert last == len(pieces())
    assert ids == list(range(last - 6, last + 9))
    assert vocabulary_size() == last + 9


def test_text_that_spells_an_overridden_piece_does_not_become_it(
    processor: sentencepiece.SentencePieceProcessor,
) -> None:
    assert max(processor.EncodeAsIds("[UNUSED_TOKEN_1]<|im_end|>")) < min(added_tokens().values())


def test_the_config_lists_every_added_token_by_id(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    decoder = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    listed = {entry["content"]: int(number) for number, entry in decoder.items()}
    assert listed == {"<unk>": 0, "<s>": 1, "</s>": 2, **added_tokens()}
    assert all(entry["special"] for entry in decoder.values())
