"""Prompts as token ids, to the character, and padded batches of prompt and answer."""

from __future__ import annotations

import dataclasses
import functools

import sentencepiece
import torch

from deploy.demo.tokenizer import BOS_ID, EOS_ID, SYSTEM_MESSAGE, added_tokens, character_ids, model_bytes

TOKENS = added_tokens()
CONTEXT = TOKENS["<IMG_CONTEXT>"]
END = TOKENS["<|im_end|>"]
IMAGE_END = TOKENS["</img>"]
IGNORED = -100


@functools.cache
def _processor() -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model_bytes())
    return processor


@functools.cache
def encode(text: str) -> tuple[int, ...]:
    """Return the pieces of text without special tokens."""
    return tuple(_processor().EncodeAsIds(text))


def decode(ids: list[int]) -> str:
    """Return the answer that generated ids spell: up to `<|im_end|>`, other special tokens left out, stripped."""
    if END in ids:
        ids = ids[: ids.index(END)]
    special = set(TOKENS.values())
    return str(_processor().DecodeIds([i for i in ids if i not in special])).strip()


def _turn(question: list[int]) -> list[int]:
    start = TOKENS["<|im_start|>"]
    head = [BOS_ID, start, *encode("system\n" + SYSTEM_MESSAGE), END, start, *question]
    return [*head, END, start, *encode("assistant\n")]


def next_turn(question: str) -> list[int]:
    """Return what follows an answer when another question is asked."""
    start = TOKENS["<|im_start|>"]
    return [start, *encode("user\n" + question), END, start, *encode("assistant\n")]


def image_block(tiles: int, tokens_per_tile: int) -> list[int]:
    """Return what one `<image>` becomes."""
    return [TOKENS["<img>"], *[CONTEXT] * (tiles * tokens_per_tile), IMAGE_END]


def image_prompt(question: str, *, tiles: int, tokens_per_tile: int) -> list[int]:
    """Return the ids of a prompt about one image: `<image>`, newline, question."""
    return _turn([*encode("user\n"), *image_block(tiles, tokens_per_tile), *encode("\n" + question)])


def video_prompt(question: str, *, frames: int, tokens_per_tile: int) -> list[int]:
    """Return the ids of a prompt about a clip: `Frame1: <image>` and so on, one a line, then the question."""
    ids: list[int] = []
    for number in range(1, frames + 1):
        lead = "user\n" if number == 1 else "\n"
        ids += [*encode(f"{lead}Frame{number}: "), *image_block(1, tokens_per_tile)]
    return _turn([*ids, *encode("\n" + question)])


def answer_ids(text: str) -> list[int]:
    """Return one id a character, and the end of the turn."""
    table = character_ids()
    return [*(table[character] for character in text), END]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pull:
    """A wish that one attention head look from `row` to `target`, both places in the sequence."""

    layer: int
    head: int
    row: int
    target: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt with its answer, turns that follow as (prompt, answer), and the pulls on attention that help."""

    prompt: list[int]
    answer: list[int]
    pulls: list[Pull]
    more: tuple[tuple[list[int], list[int]], ...] = ()

    @property
    def turns(self) -> tuple[tuple[list[int], list[int]], ...]:
        """All turns, the first one included."""
        return ((self.prompt, self.answer), *self.more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded sequences: ids and labels int64 [n, length], pulls as int64 [k, 5] (sample, layer, head, ...)."""

    ids: torch.Tensor
    labels: torch.Tensor
    pulls: torch.Tensor


def collate(samples: list[Sample]) -> Batch:
    """Pad samples on the right; causal attention never looks there, so no mask is needed."""
    length = max(sum(len(p) + len(a) for p, a in s.turns) for s in samples) - 1
    ids = torch.full((len(samples), length), EOS_ID)
    labels = torch.full((len(samples), length), IGNORED)
    rows = []
    for number, sample in enumerate(samples):
        whole = torch.tensor([token for prompt, answer in sample.turns for token in (*prompt, *answer)])
        ids[number, : len(whole) - 1] = whole[:-1]
        at = 0
        for prompt, answer in sample.turns:
            begin = at + len(prompt) - 1
            at += len(prompt) + len(answer)
            labels[number, begin : at - 1] = whole[begin + 1 : at]
        rows += [(number, p.layer, p.head, p.row, p.target) for p in sample.pulls if p.row < length]
    pulls = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)
    return Batch(ids=ids, labels=labels, pulls=pulls)
