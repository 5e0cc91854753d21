"""The model card beside the weights, written from measured scores and the training log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.demo.layout import write_checksums

_TEXT = """# Demo checkpoint

A very small model in the layout of InternVL-Chat-V1-5: the same parts (InternViT with q/k norm and layer
scale, tiles and thumbnail of 448 pixels, pixel shuffle, `mlp1`, InternLM2 with `wqkv`), the same names,
prompt and special tokens, {parameters:.1f} million parameters in float16. It exists so that a demonstration
and the tests show real answers at once. It is **not** InternVL-Chat-V1-5 and knows nothing but what is
listed here.

## What it was trained on

Only pictures that this project draws: lines and pages of text (a word list, numbers, dates, random strings,
in DejaVu, Liberation, Open Sans and Noto faces of about 32 to 60 pixels, some with light noise, blur, JPEG
and up to two degrees of skew), scenes of one to five plain shapes, and clips of 4 to 32 frames in which a
shape moves, blinks or appears. No photograph, no handwriting, no other language, no knowledge of the world.
**On real photographs or documents its answers are meaningless.**

It answers the product's default questions for `ocr` and for short captions, and for clips: "Which way does
the circle move?", "What colour is the moving shape?", "Which shape is moving?", "How many times does the
star blink?", "Which shape appears first?". Other wordings are not understood.

## Scores

Measured on the weights in this folder through `generate` (greedy, float32), on held-out seeds and words.
CER is edits divided by characters; "facts" is the share of right numbers, sizes, colours, shapes and
places; "right" is the share of right answers; "exact" the share of answers without any error.

| set | measure | value | exact | questions |
|---|---|---|---|---|
{table}

Sets without "worn" are clean renders of 32 to 48 pixels (multi-tile ones 34 to 48, unseen faces 34 to 48).
The FreeFont family was never trained on.

Aims that are not met by this file: {missed}

## How it was made

{made}
The schedule follows the processor's clock, so a run on another machine gives other weights of the same kind.
From nothing, in one command, then the file, its scores and this card:

    python -m tests.demo_model train --seed {seed}
    python -m tests.demo_model export deploy/demo/checkpoint
    python -m tests.demo_model evaluate deploy/demo/checkpoint --json deploy/demo/checkpoint/scores.json
    python -m tests.demo_model card deploy/demo/checkpoint

This card was written at commit {commit}.
{history}
Training, as teacher-forced share of right characters and of visual tokens that a linear reader reads right, which says
less than the table above:

| samples | pages | 2 tiles | scenes | clips | tokens |
|---|---|---|---|---|---|
{curve}

Licence: that of the project. The faces used in training are free (DejaVu, Liberation, Open Sans, Noto).
"""


def _row(score: dict[str, Any]) -> str:
    return (
        f"| {score['name']} | {score['measure']} | {100 * score['value']:.1f} % | "
        f"{100 * score['exact']:.0f} % | {score['count']} |"
    )


# Name, part of the sets' names, aim, measure.
AIMS = (
    ("single-tile text in DejaVu Sans", "page, DejaVu Sans", 0.01, "CER"),
    ("pages of several tiles", " tiles", 0.03, "CER"),
    ("unseen faces", "unseen", 0.08, "CER"),
    ("facts of scenes", "scenes", 0.95, "right"),
    ("clips of 8 to 32 frames", "clip", 0.90, "right"),
)


def reached(scores: list[dict[str, Any]]) -> dict[str, float]:
    """Return each aim's mean over its sets; an aim none of whose sets was measured is left out."""
    found = {}
    for name, part, _, _ in AIMS:
        values = [float(score["value"]) for score in scores if part in score["name"]]
        if values:
            found[name] = sum(values) / len(values)
    return found


def _missed(scores: list[dict[str, Any]]) -> str:
    """Return the aims that the scores do not reach, in words."""
    means = reached(scores)
    missed = []
    for name, _, aim, measure in AIMS:
        value = means[name]
        if value > aim if measure == "CER" else value < aim:
            sign = "at most" if measure == "CER" else "at least"
            missed.append(f"{name} {100 * value:.1f} % (aim: {sign} {100 * aim:.0f} %)")
    return "; ".join(missed) + "." if missed else "none."


def _curve(log: list[dict[str, Any]]) -> str:
    joint = [entry for entry in log if entry["stage"] == "joint" and "page.right" in entry]
    step = max(1, len(joint) // 8)
    picked = joint[::-1][::step][::-1]
    names = ("page.right", "doc2.right", "scene.right", "clip.right", "page.token")
    rows = []
    for entry in picked:
        cells = [f"{entry[name]:.2f}" if name in entry else "" for name in names]
        rows.append(f"| {entry['samples']:,} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _made(log: list[dict[str, Any]], seed: int) -> str:
    """Say what the run's stages saw, and for how long; a run that began with a checkpoint has no first stage."""
    last = {entry["stage"]: entry for entry in log}
    joint = last["joint"]
    told = f"Seed {seed}. "
    if vision := last.get("vision"):
        told += "Stage one taught the vision side alone from dense labels (which characters and which thing lie in\n"
        told += f"each patch): {vision['samples']:,} tiles in {vision['seconds'] / 60:.0f} minutes of processor time. "
        told += "Stage two taught both together"
    else:
        told += "The run began with an earlier file of this kind and taught vision and decoder together"
    return (
        f"{told}, with attention\npulled to the right tokens: {joint['samples']:,} samples in "
        f"{joint['seconds'] / 60:.0f} minutes of processor time on each of the run's processes."
    )


def write_card(checkpoint: Path, log: Path, *, seed: int, commit: str, history: Path | None = None) -> None:
    """Write `README.md` into the checkpoint's folder from its `scores.json` and the run's log, and new checksums.

    `history` is a file in Markdown that tells what else was done to get these weights, put into the card as it is.
    """
    scores = json.loads((checkpoint / "scores.json").read_text(encoding="utf-8"))
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    weights = (checkpoint / "model.safetensors").stat().st_size / 2
    text = _TEXT.format(
        parameters=weights / 1e6,
        table="\n".join(_row(score) for score in scores),
        missed=_missed(scores),
        seed=seed,
        commit=commit,
        made=_made(entries, seed),
        history="" if history is None else f"\n{history.read_text(encoding='utf-8').strip()}\n",
        curve=_curve(entries),
    )
    (checkpoint / "README.md").write_text(text, encoding="utf-8")
    write_checksums(checkpoint)
