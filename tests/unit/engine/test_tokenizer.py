from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from pipelines.engine.errors import CheckpointError
from pipelines.engine.tokenizer import Detokenizer, Special, TextAssembler, Tokenizer, read_tokenizer

SPECIALS = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    """A BPE with byte fallback and a dummy prefix from SentencePiece's own trainer, its last five pieces overridden."""
    text = [
        "the quick brown fox jumps over the lazy dog",
        "system user assistant image answer",
        "[UNUSED_TOKEN_1]",
    ] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        user_defined_symbols=[f"[UNUSED_TOKEN_{n}]" for n in range(5)],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = [pieces.piece_to_id(f"[UNUSED_TOKEN_{n}]") for n in range(5)]
    return Tokenizer(model.getvalue(), dict(zip(SPECIALS, ids, strict=True)))


@given(text=st.text())
def test_text_survives_the_round_trip_of_a_plain_model(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode([text])) == text


@given(
    text=st.sampled_from([*SPECIALS, "[UNUSED_TOKEN_1]", "<s>", "</s>", "x <|im_end|>y", "<img><IMG_CONTEXT></img>"])
)
def test_text_that_spells_a_special_token_stays_text(tokenizer: Tokenizer, trained: Tokenizer, text: str) -> None:
    for each in (tokenizer, trained):
        ids = each.encode([text])
        assert not set(ids) & set(each.special.values())
        assert each.decode(ids).strip() == text


def test_special_parts_become_their_ids_and_have_no_text(trained: Tokenizer) -> None:
    ids = trained.encode([Special("<s>"), Special("<|im_start|>"), "user", Special("<IMG_CONTEXT>", 3)])
    assert ids[0] == 1
    assert ids[1] == trained.special["<|im_start|>"]
    assert ids[-3:] == [trained.image_token] * 3
    assert trained.decode(ids).strip() == "user"


def test_neighbouring_texts_are_one_text(trained: Tokenizer) -> None:
    assert trained.encode(["the qu", "ick fox"]) == trained.encode(["the quick fox"])


def test_decoding_agrees_with_sentencepiece(trained: Tokenizer) -> None:
    for text in ("the lazy fox", "größer 你好 🙂", "a  b"):
        ids = trained.encode([text])
        assert trained.decode(ids).strip() == trained._pieces.decode(ids).strip()


@given(text=st.text(min_size=1), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_no_piece_of_text_ends_inside_a_character(trained: Tokenizer, text: str, cuts: list[int]) -> None:
    ids = trained.encode([text])
    detokenizer, pieces = Detokenizer(trained), []
    for number in ids:
        pieces.append(detokenizer.push([number]))
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == trained.decode(ids)


def test_an_unfinished_character_is_shown_as_one_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["好"])
    assert len(ids) == 3
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(ids[:2]) == ""
    assert detokenizer.flush() == "\ufffd"


@given(
    text=st.text(alphabet="ab \nEND", max_size=40),
    stop=st.lists(st.sampled_from(["END", "ab", "a b", "\n\n"]), max_size=2),
)
def test_the_pieces_joined_are_the_text_cut_at_the_first_stop_and_stripped(
    tokenizer: Tokenizer, text: str, stop: list[str]
) -> None:
    assembler = TextAssembler(tokenizer, stop)
    pieces = []
    for number in tokenizer.encode([text]):
        pieces.append(assembler.push([number]))
        if assembler.stopped:
            break
    pieces.append(assembler.flush())
    # Character by character, an answer ends with the first stop string that is complete.
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(each) for each in stop)]
    wanted = text
    if ends:
        longest = max(len(each) for each in stop if text[: ends[0]].endswith(each))
        wanted = text[: ends[0] - longest]
    assert "".join(pieces) == assembler.text == wanted.strip()
    assert assembler.stopped == bool(ends)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return read_tokenizer(checkpoint)


def test_a_missing_or_damaged_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="SentencePiece"):
        read_tokenizer(tmp_path)


def test_added_tokens_may_stand_in_a_file_of_their_own(checkpoint: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "tokenizer.model").write_bytes((checkpoint / "tokenizer.model").read_bytes())
    with pytest.raises(CheckpointError, match="lacks the token"):
        read_tokenizer(tmp_path)
    names = {name: number for name, number in tokenizer.special.items() if name not in ("<s>", "</s>")}
    (tmp_path / "added_tokens.json").write_text(json.dumps(names))
    assert read_tokenizer(tmp_path).special == tokenizer.special
