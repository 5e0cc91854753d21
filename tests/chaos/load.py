"""The load: flat pictures of distinct colours, some poisoned, and what each must end in.

A flat picture stays flat whatever its size, so the hash that its answer must carry is known without asking the decoder.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.media.pack import TilePack
from pipelines.steps.prepare import media_hash_of
from tests.chaos.operations import MARK

DECODER_POISON = {"segfault": "decoder_crashed", "hang": "decode_timed_out", "memory": "decoder_out_of_memory"}
ENGINE_POISON = {"memory": "worker_out_of_memory", "exit": "internal_error"}
KILLER, LOST = "segfault", "worker_lost"
_ANSWER = {"generation": {"max_new_tokens": 12}}  # the deterministic answer has six words
# Pictures of one colour bear no text; and one question a picture, so that it can be asked again.
_READ = {**_ANSWER, "skip_blank": False, "max_continuations": 0, "auto_rotate": False}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How an item must end: succeeded over this medium, or failed with this code."""

    colour: tuple[int, int, int]
    code: str | None = None
    prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """One job to submit; `wanted` by the name of the document."""

    label: str
    tenant: int
    kind: str
    source: Mapping[str, Any]
    parameters: Mapping[str, Any]
    wanted: Mapping[str, Wanted]
    cancelled: bool = False
    priority: str = "normal"


@dataclass
class Load:
    """Pictures are written below `bucket`, a folder that S3 serves as the bucket of this name."""

    bucket: Path
    seed: int
    _colours: list[int] = field(default_factory=list)

    def asked(self, count: int) -> list[PlannedJob]:
        """Interactive jobs of one picture each, to be submitted one after the other."""
        draw = random.Random(f"{self.seed} asked")
        folder = self.bucket / "asked"
        folder.mkdir(parents=True, exist_ok=True)
        jobs = []
        for number, value in enumerate(draw.sample(range(1 << 24), count)):
            colour, name = _colour(value), f"asked-{number:06d}.png"
            folder.joinpath(name).write_bytes(_png(colour))
            entry = {"url": f"s3://{self.bucket.name}/asked/{name}", "id": name}
            job = PlannedJob(
                label=f"asked-{number}",
                tenant=number % 2,
                kind="ocr",
                source={"type": "media", "media": [entry]},
                parameters=_READ,
                wanted={name: Wanted(colour=colour)},
                priority="interactive",
            )
            jobs.append(job)
        return jobs

    def jobs(self, items: int, *, poison: int, killers: int) -> list[PlannedJob]:
        """`items` over six jobs; and one job more that will be cancelled.

        `poison` of each sort that harms its own decoder or request alone, `killers` that take an engine worker along.
        Job 0 is small, so that it ends and is redriven while the others run.
        """
        draw = random.Random(self.seed)
        first = items // 10
        each = (items - first) // 5
        self._colours = draw.sample(range(1 << 24), first + 6 * each)
        decoder = list(DECODER_POISON) * poison
        engine = [*list(ENGINE_POISON) * poison, *[KILLER] * killers]
        jobs = [self._job(draw, 0, first, decoder), self._job(draw, 1, each, engine)]
        jobs += [self._job(draw, number, each, []) for number in range(2, 6)]
        return [self._job(draw, 6, each, [], cancelled=True), *jobs]

    def _job(
        self, draw: random.Random, number: int, size: int, poison: Sequence[str], *, cancelled: bool = False
    ) -> PlannedJob:
        """Jobs 0, 3, 6 are prefixes of OCR; 1, 4 manifests of OCR with a prompt each; 2, 5 lists for captions."""
        label = f"job-{number}"
        names = [f"{label}-{index:06d}.png" for index in range(size)]
        sorts = DECODER_POISON if number == 0 else {**ENGINE_POISON, KILLER: LOST}
        poisons = dict(zip(draw.sample(names, len(poison)), poison, strict=True))
        folder = self.bucket / label
        folder.mkdir(parents=True, exist_ok=True)
        wanted: dict[str, Wanted] = {}
        for name in names:
            colour = _colour(self._colours.pop())
            sort = poisons.get(name)
            prompt = f"chaos:{sort} {name}" if sort and number == 1 else f"What is on {name}?"
            wanted[name] = Wanted(colour=colour, code=sorts.get(sort or ""), prompt=prompt)
            data = _png(colour) + (MARK + sort.encode() if sort and number == 0 else b"")
            folder.joinpath(name).write_bytes(data)
        url = f"s3://{self.bucket.name}/{label}/"
        kind, parameters, source = _request(number % 3, url, wanted)
        return PlannedJob(
            label=label,
            tenant=number % 2,
            kind=kind,
            source=source,
            parameters=parameters,
            wanted=wanted,
            cancelled=cancelled,
        )


def expected_media_hash(colour: tuple[int, int, int], tile: int) -> str:
    """What binds an answer to a flat picture of this colour."""
    tiles = np.empty((1, tile, tile, 3), np.uint8)
    tiles[:] = colour
    return media_hash_of(TilePack.of(tiles, (1,)))


def _request(shape: int, url: str, wanted: Mapping[str, Wanted]) -> tuple[str, Mapping[str, Any], dict[str, Any]]:
    if shape == 0:
        return "ocr", _READ, {"type": "prefix", "url": url}
    entries: list[dict[str, Any]] = [{"url": url + name, "id": name} for name in wanted]
    if shape == 1:
        for entry in entries:
            entry["overrides"] = {"prompt": wanted[entry["id"]].prompt}
        inline = "\n".join(json.dumps(entry) for entry in entries)
        return "ocr", _READ, {"type": "manifest", "format": "jsonl", "inline": inline}
    return "caption", _ANSWER, {"type": "media", "media": entries}


def _colour(value: int) -> tuple[int, int, int]:
    return value >> 16, value >> 8 & 255, value & 255


def _png(colour: tuple[int, int, int]) -> bytes:
    out = BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()
