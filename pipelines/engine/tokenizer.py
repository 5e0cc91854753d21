"""InternLM2's tokenizer: SentencePiece with byte fallback and added tokens that override pieces by id.

transformers has no class for it, and the original one is remote code. The added tokens are never looked for in text:
a prompt is given as parts, and only a `Special` part becomes a special token, so that user text which spells one stays
text. `Detokenizer` turns ids into text piece by piece and never emits half of a UTF-8 character.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.engine.errors import CheckpointError

BOS = "<s>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
IMG_START = "<img>"
IMG_END = "</img>"
IMG_CONTEXT = "<IMG_CONTEXT>"
_NEEDED = (IM_START, IM_END, IMG_START, IMG_END, IMG_CONTEXT)
_SPACE = "\u2581"


@dataclass(frozen=True)
class Special:
    """A special token of a prompt, `count` times."""

    name: str
    count: int = 1


Part = str | Special


class Tokenizer:
    """Text to ids and back. Safe to share between threads."""

    def __init__(self, model: bytes, added: dict[str, int]) -> None:
        import sentencepiece  # noqa: PLC0415 - measuring the model on ids alone needs no tokenizer

        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise CheckpointError("tokenizer.model is not a SentencePiece model") from error
        self.bos: int = self._pieces.bos_id()
        self.eos: int = self._pieces.eos_id()
        self.special = {BOS: self.bos, "</s>": self.eos, **added}
        if missing := [name for name in _NEEDED if name not in self.special]:
            raise CheckpointError(f"the tokenizer lacks the token {missing[0]}")
        self.image_token = self.special[IMG_CONTEXT]
        self.stop_token = self.special[IM_END]
        self._special_ids = frozenset(self.special.values())
        self.size = max(self._pieces.get_piece_size(), 1 + max(self._special_ids))
        self._bytes = [self._piece_bytes(number) for number in range(self.size)]

    def encode(self, parts: Iterable[Part]) -> list[int]:
        """Return the ids of a prompt given as parts. Neighbouring texts are joined before they are encoded."""
        ids: list[int] = []
        text: list[str] = []
        for part in parts:
            if isinstance(part, str):
                text.append(part)
                continue
            ids += self._encode_text("".join(text))
            text.clear()
            ids += [self.special[part.name]] * part.count
        return ids + self._encode_text("".join(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; special tokens have none."""
        detokenizer = Detokenizer(self)
        return detokenizer.push(ids) + detokenizer.flush()

    def token_bytes(self, number: int) -> bytes:
        """Return the UTF-8 bytes that a token stands for: none for a special token or an id out of range."""
        return self._bytes[number] if 0 <= number < self.size else b""

    def _encode_text(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._pieces.encode(text)
        if self._special_ids.isdisjoint(ids):
            return ids
        # The overridden pieces have ordinary spellings; text that spells one is taken character by character.
        safe: list[int] = []
        for number in ids:
            safe += self._spell(number) if number in self._special_ids else [number]
        return safe

    def _spell(self, number: int) -> list[int]:
        ids: list[int] = []
        for character in self._pieces.id_to_piece(number):
            piece = self._pieces.piece_to_id(character)
            if piece != self._pieces.unk_id() and piece not in self._special_ids:
                ids.append(piece)
                continue
            data = character.replace(_SPACE, " ").encode()
            ids += [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in data]
        return ids

    def _piece_bytes(self, number: int) -> bytes:
        pieces = self._pieces
        if number in self._special_ids or number >= pieces.get_piece_size():
            return b""
        if pieces.is_control(number) or pieces.is_unknown(number) or pieces.is_unused(number):
            return b""
        piece: str = pieces.id_to_piece(number)
        if pieces.is_byte(number):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()


class Detokenizer:
    """Ids to text, a few at a time; what may still be the beginning of a character is held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Return the new text that is certain after `ids`."""
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, ids)))

    def flush(self) -> str:
        """Return what was held back; an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


class TextAssembler:
    """Builds an answer as the original does (cut at a stop, stripped) while pieces of it are already sent.

    White space is held back until text follows it, and so is a tail that may become a stop string: the pieces,
    joined, are exactly the final text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = tuple(stop)
        self._held = ""
        self._started = False
        self.text = ""
        self.stopped = False

    def push(self, ids: Iterable[int]) -> str:
        """Return the next piece (often empty). After a stop string `stopped` is set and nothing follows."""
        return self._take(self._detokenizer.push(ids), final=False)

    def flush(self) -> str:
        """Return the last piece."""
        return self._take(self._detokenizer.flush(), final=True)

    def _take(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        keep = 0
        if self._stop:
            hits = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
            if hits:
                self._held = self._held[: min(hits)]
                self.stopped = final = True
            elif not final:
                keep = self._unsure()
        ready, rest = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if not self._started:
            ready = ready.lstrip()
        body = ready.rstrip()
        self._held = "" if final else ready[len(body) :] + rest
        self._started = self._started or bool(body)
        self.text += body
        return body

    def _unsure(self) -> int:
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.model` with the added tokens of `tokenizer_config.json`, else of `added_tokens.json`."""
    try:
        model = (folder / "tokenizer.model").read_bytes()
    except OSError as error:
        raise CheckpointError("tokenizer.model is missing: it is InternLM2's SentencePiece file") from error
    config = _json(folder / "tokenizer_config.json")
    added: dict[str, int] = {}
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        added = {str(entry["content"]): int(number) for number, entry in decoder.items()}
    if not added:
        added = {str(name): int(number) for name, number in _json(folder / "added_tokens.json").items()}
    added.pop("<unk>", None)
    return Tokenizer(model, added)


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read as JSON") from error
    return found if isinstance(found, dict) else {}
