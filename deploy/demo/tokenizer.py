"""The demo checkpoint's tokenizer: a small SentencePiece BPE model with byte fallback, written without a trainer.

It has the shape of InternLM2's: `<unk> <s> </s>`, the 256 byte pieces, text pieces, and six unused pieces at the
end that `added_tokens_decoder` overrides with the chat tokens; the image tokens follow above the SentencePiece
range. Every printable ASCII character and the newline is a piece, and no merges join them, so a text answer is
read and written character by character. The fixed parts of the prompt (the system message, the role names, the
product's default questions, the words of the video questions) are user-defined pieces: one token each, which
keeps prompts short on a CPU.

A model file is a protobuf message (sentencepiece_model.proto in google/sentencepiece). Its few fields are encoded
here by hand, so that neither protobuf nor a training run is needed.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
OCR_QUESTION = "Please read all the text in this image, line by line. Answer with the text only."
CAPTION_IMAGE_QUESTION = "Please describe the image shortly."
CAPTION_VIDEO_QUESTION = "Please describe the video shortly."

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
PHRASES = (
    SYSTEM_MESSAGE,
    "system\n",
    "user\n",
    "assistant\n",
    OCR_QUESTION,
    CAPTION_IMAGE_QUESTION,
    CAPTION_VIDEO_QUESTION,
    "Frame",
    ": ",
    "Which",
    "What",
    "How",
    " way",
    " does",
    " the",
    " it",
    " is",
    " moving",
    " move?",
    " colour",
    " many",
    " times",
    " blink?",
    " bounce?",
    " shape",
    " shape?",
    " appears",
    " first?",
    " circle",
    " square",
    " triangle",
    " star",
)
OVERRIDES = (
    "<|plugin|>",
    "<|interpreter|>",
    "<|action_end|>",
    "<|action_start|>",
    "<|im_end|>",
    "<|im_start|>",
)
APPENDED = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")

# Values of SentencePiece.Type and TrainerSpec.ModelType in sentencepiece_model.proto.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BPE = 2
_SPACE = "\u2581"


def pieces() -> tuple[tuple[str, int], ...]:
    """Return every SentencePiece piece with its type, in id order."""
    table: list[tuple[str, int]] = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
    table += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
    table += [(character.replace(" ", _SPACE), _NORMAL) for character in CHARACTERS]
    table += [(phrase.replace(" ", _SPACE), _USER_DEFINED) for phrase in PHRASES]
    table += [(f"[UNUSED_TOKEN_{number}]", _UNUSED) for number in range(1, len(OVERRIDES) + 1)]
    return tuple(table)


def added_tokens() -> dict[str, int]:
    """Return the chat and image tokens with their ids: six override pieces, the rest follow the last piece."""
    end = len(pieces())
    first = end - len(OVERRIDES)
    return {token: first + number for number, token in enumerate((*OVERRIDES, *APPENDED))}


def vocabulary_size() -> int:
    """Return the number of rows of the embedding: SentencePiece pieces and appended tokens."""
    return len(pieces()) + len(APPENDED)


def character_ids() -> dict[str, int]:
    """Return the id of each single character of `CHARACTERS`."""
    first = 3 + 256
    return {character: first + number for number, character in enumerate(CHARACTERS)}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def model_bytes() -> bytes:
    """Encode the SentencePiece `ModelProto`; the same bytes on every call."""
    out = bytearray()
    for number, (piece, kind) in enumerate(pieces()):
        body = _message(1, piece.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", -float(number))
        out += _message(1, body + _number(3, kind))
    trainer = (
        _number(3, _BPE)
        + _number(4, len(pieces()))
        + _number(35, 1)  # byte_fallback
        + _number(40, UNK_ID)
        + _number(41, BOS_ID)
        + _number(42, EOS_ID)
    )
    # No dummy prefix, no squeezing of spaces: newlines and runs of spaces survive a round trip.
    normalizer = _message(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
    return bytes(out + _message(2, trainer) + _message(3, normalizer))


def _added_token(content: str) -> dict[str, str | bool]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, **flags, "special": True}


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.model`, `tokenizer_config.json` and `special_tokens_map.json` into `folder`."""
    (folder / "tokenizer.model").write_bytes(model_bytes())
    added = {"<unk>": UNK_ID, "<s>": BOS_ID, "</s>": EOS_ID, **added_tokens()}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(number): _added_token(token) for token, number in added.items()},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 4096,
        "pad_token": "</s>",
        "tokenizer_class": "InternLM2Tokenizer",
        "unk_token": "<unk>",
    }
    names = {
        "additional_special_tokens": [*OVERRIDES[::-1], *APPENDED],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }
    for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
