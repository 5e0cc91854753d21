"""Stage two: vision and decoder together, on lines, pages of several tiles, scenes and clips."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  the usual name

from tests.demo_model.chats import CONTEXT, Batch, collate
from tests.demo_model.decoder import Reading, read
from tests.demo_model.heads import Stats, cell_loss, character_loss, thing_loss
from tests.demo_model.joint_data import ClipItem, SceneItem, TextItem, Told, clip_item, scene_item, text_item
from tests.demo_model.labels import TOKENS, by_token
from tests.demo_model.network import project, see
from tests.demo_model.pages import PageKind
from tests.demo_model.run import Run
from tests.demo_model.vision_stage import scene_arrays

# Shares of the tasks in the first third, up to two thirds, and to the end of the stage.
MIXES: tuple[tuple[float, dict[str, float]], ...] = (
    (0.36, {"line": 0.06, "few": 0.2, "page": 0.44, "doc2": 0.06, "scene": 0.11, "clip": 0.13}),
    (0.66, {"line": 0.05, "few": 0.1, "page": 0.32, "doc2": 0.11, "doc4": 0.06, "scene": 0.17, "clip": 0.19}),
    (
        1.0,
        {
            "line": 0.03,
            "few": 0.06,
            "page": 0.24,
            "doc2": 0.22,
            "doc4": 0.1,
            "doc6": 0.03,
            "scene": 0.14,
            "clip": 0.18,
        },
    ),
)
SIZES = {"line": 10, "few": 9, "page": 8, "doc2": 4, "doc4": 2, "doc6": 1, "scene": 12}
FRAMES = ((8, 0.5), (4, 0.15), (12, 0.05), (16, 0.2), (32, 0.1))
FRAMES_A_STEP = 16
TO_VISION = 0.2  # share of the text's gradient that reaches the vision tower
VISION_SHARE = 0.7  # steps in which the vision tower learns too; they cost two fifths more
PULL, DENSE, WHERE, HARD = 1.0, 0.5, 0.3, 0.5


def task_of(draw: random.Random, done: float) -> tuple[str, int]:
    """Return a rank's task and its frames (clips only). Ranks draw apart, so that a step mixes tasks."""
    mix = next(mix for end, mix in MIXES if done <= end)
    task = draw.choices(list(mix), list(mix.values()))[0]
    frames = draw.choices([n for n, _ in FRAMES], [share for _, share in FRAMES])[0]
    return task, frames if task == "clip" else 0


def samples_of(task: str, frames: int) -> int:
    """Return how many samples a rank's step has."""
    return max(1, FRAMES_A_STEP // frames) if task == "clip" else SIZES[task]


def _page_kind(draw: random.Random, task: str) -> PageKind:
    # Wearing several tiles takes longer than learning from them, and teaches nothing that one tile does not.
    base = PageKind(plain=0.7, wear=0.05 if task.startswith("doc") else 0.35)
    if task == "line":
        return dataclasses.replace(base, lines=1, most=40)
    if task == "few":
        return dataclasses.replace(base, lines=draw.randint(2, 5), most=120)
    if task == "page":
        return dataclasses.replace(base, most=280)
    if task == "doc2":
        columns, rows = draw.choice(((2, 1), (1, 2)))
        lines = draw.choice((None, draw.randint(2, 9)))
        return dataclasses.replace(base, columns=columns, rows=rows, lines=lines, most=300)
    if task == "doc4":
        lines = draw.choice((None, draw.randint(3, 14)))
        return dataclasses.replace(base, columns=2, rows=2, lines=lines, most=380)
    lines = draw.choice((None, draw.randint(6, 20)))
    return dataclasses.replace(base, columns=2, rows=3, lines=lines, most=440)


def _see(
    run: Run, items: list[TextItem] | list[SceneItem], *, learn: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return patch features, tokens for the dense heads, and tokens for the decoder with damped gradient."""
    tiles = torch.from_numpy(np.concatenate([item.tiles for item in items])).to(run.device)
    with torch.set_grad_enabled(learn):
        features = see(run.network, tiles, run.shape)
        tokens = project(run.network, features)
    return features, tokens, tokens * TO_VISION + tokens.detach() * (1 - TO_VISION)


def _batch(run: Run, items: list[TextItem] | list[SceneItem] | list[ClipItem]) -> Batch:
    batch = collate([item.sample for item in items])
    return Batch(**{f.name: getattr(batch, f.name).to(run.device) for f in dataclasses.fields(batch)})


def _stats(task: str, reading: Reading, more: Stats) -> Stats:
    figures = {"ce": float(reading.loss.detach()), "right": reading.right, "pull": reading.pulled, **more}
    return {f"{task}.{name}": value for name, value in figures.items()}


def _where(run: Run, reading: Reading, batch: Batch, *, tiles: bool) -> tuple[torch.Tensor, Stats]:
    """Loss of where the pulled heads look: what looked at a token must know its cell and, on pages, its tile."""
    image = batch.ids == CONTEXT
    index = image.cumsum(1) - 1  # of each image token among its sample's
    loss = torch.zeros((), device=run.device)
    stats: Stats = {}
    for layer, states in reading.states.items():
        sample, at, _, row, target = batch.pulls.unbind(1)
        kept = (at == layer) & image[sample, target]
        sample, row, token = sample[kept], row[kept], index[sample, target][kept]
        if len(sample):
            part, stats[f"cell{layer}"] = cell_loss(run.clip_heads.cells[layer], states[sample, row], token)
            loss = loss + part
            if tiles:
                logits = run.clip_heads.tiles[layer](states[sample, row]).float()
                loss = loss + F.cross_entropy(logits, token // TOKENS)
        if tiles and layer == 0:
            logits = run.clip_heads.tiles[0](states[image]).float()
            wanted = index[image] // TOKENS
            stats["tile"] = float((logits.argmax(-1) == wanted).float().mean())
            loss = loss + F.cross_entropy(logits, wanted)
    return loss, stats


def _text_step(run: Run, draw: random.Random, task: str, difficulty: float, *, learn: bool) -> Stats:
    items = [
        text_item(draw, _page_kind(draw, task), difficulty=difficulty, shape=run.shape) for _ in range(SIZES[task])
    ]
    features, tokens, damped = _see(run, items, learn=learn)
    batch = _batch(run, items)
    reading = read(run.network, damped, batch, run.shape, keep=(0, 1, 2, 3))
    where, known = _where(run, reading, batch, tiles=True)
    loss = reading.loss + PULL * reading.pull + WHERE * where
    if not learn:
        torch.autograd.backward(loss)
        return _stats(task, reading, known)
    labelled: list[int] = []
    at = 0
    for item in items:
        labelled += range(at, at + len(item.labels))
        at += len(item.tiles)
    labels = np.concatenate([item.labels for item in items])
    dense, more = character_loss(
        run.heads,
        features[labelled],
        tokens[labelled],
        torch.from_numpy(labels).to(run.device),
        torch.from_numpy(by_token(labels)).to(run.device),
    )
    torch.autograd.backward(loss + DENSE * dense)
    return {**_stats(task, reading, {**more, **known}), "patch": more["patch"]}


def _scene_step(run: Run, draw: random.Random, *, learn: bool) -> Stats:
    items = [scene_item(draw, run.shape) for _ in range(SIZES["scene"])]
    features, tokens, damped = _see(run, items, learn=learn)
    batch = _batch(run, items)
    reading = read(run.network, damped, batch, run.shape, keep=(1, 2, 3))
    told, told_stats = _told(run, reading, [item.told for item in items])
    where, known = _where(run, reading, batch, tiles=False)
    told_stats |= known
    loss = reading.loss + HARD * reading.hard + PULL * reading.pull + told + WHERE * where
    if not learn:
        torch.autograd.backward(loss)
        return _stats("scene", reading, told_stats)
    arrays = (part.to(run.device) for part in scene_arrays([item.scene for item in items]))
    dense, more = thing_loss(run.heads, features, tokens, *arrays)
    torch.autograd.backward(loss + DENSE * dense)
    return _stats("scene", reading, {**more, **told_stats})


def _labelled(head: torch.nn.Linear, states: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, float]:
    logits = head(states).float()
    right = float((logits.argmax(-1) == wanted)[wanted >= 0].float().mean()) if (wanted >= 0).any() else 0.0
    return F.cross_entropy(logits, wanted, ignore_index=-1, reduction="sum") / max(1, int((wanted >= 0).sum())), right


def _distance(head: torch.nn.Linear, states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of a head over the rows whose values are known (not NaN)."""
    known = ~wanted.isnan().any(-1)
    if not known.any():
        return torch.zeros((), device=states.device)
    # The residual stream is large and grows with depth: unscaled, a step of the head would throw it far off.
    level = 0.2 * head(F.rms_norm(states[known], states.shape[-1:]))
    error: torch.Tensor = (level.float() - wanted[known]).abs().mean()
    return error


def _rows(run: Run, parts: list[list[Told]], width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return sample, place in the sequence, and values of all known places of a batch."""
    rows = [(n, *place) for n, part in enumerate(parts) for place in part]
    table = torch.tensor(rows, device=run.device).reshape(-1, width + 2)
    return table[:, 0].long(), table[:, 1].long(), table[:, 2:]


def _told(run: Run, reading: Reading, parts: list[list[Told]]) -> tuple[torch.Tensor, Stats]:
    """Loss of the thing being described, read from the answer's middle states: it must have got there by then."""
    sample, row, known = _rows(run, parts, 3)
    if not len(row):
        return torch.zeros((), device=run.device), {}
    states = reading.states[3][sample, row]
    loss, right = _labelled(run.clip_heads.thing, states, known[:, 0].long())
    place = _distance(run.clip_heads.place, states, known[:, 1:])
    return loss + place, {"told": right, "told_place": float(place.detach())}


def _clip_step(run: Run, draw: random.Random, frames: int) -> Stats:
    """Train the decoder alone: the tower learns things from single scenes, at a fraction of the cost."""
    items = [clip_item(draw, frames=frames, shape=run.shape) for _ in range(samples_of("clip", frames))]
    tiles = torch.from_numpy(np.concatenate([item.tiles for item in items])).to(run.device)
    with torch.no_grad():
        tokens = project(run.network, see(run.network, tiles, run.shape))
    batch = _batch(run, items)
    reading = read(run.network, tokens, batch, run.shape, keep=(1, 2, 3))
    told, more = _told(run, reading, [item.told for item in items])
    sample, row, spots = _rows(run, [item.spots for item in items], 4)
    place = _distance(run.clip_heads.place, reading.states[2][sample, row], spots[:, :2])
    shift = _distance(run.clip_heads.shift, reading.states[3][sample, row], spots[:, 2:])
    more |= {"place": float(place.detach()), "shift": float(shift.detach())}
    where, known = _where(run, reading, batch, tiles=False)
    more |= known
    loss = reading.loss + HARD * reading.hard + PULL * reading.pull
    loss = loss + told + place + 2 * shift + where
    starts = [(n, *start) for n, item in enumerate(items) for start in item.starts]
    if starts:
        begun = torch.tensor(starts, device=run.device)
        states = reading.states[3][begun[:, 0], begun[:, 1]]
        part, more["start"] = cell_loss(run.clip_heads.start, states, begun[:, 2])
        loss = loss + part
    places = torch.tensor([(n, *place) for n, item in enumerate(items) for place in item.moving])
    if len(places):
        places = places.to(run.device)
        middle = reading.states[1][places[:, 0], places[:, 1]]
        part, more["moving"] = _labelled(run.clip_heads.moving, middle, places[:, 2])
        loss = loss + DENSE * part
    ends = torch.tensor([(n, *end) for n, item in enumerate(items) for end in item.ends]).to(run.device)
    late = reading.states[3][ends[:, 0], ends[:, 1]]
    heads = run.clip_heads
    for name, head, column in (("thing", heads.thing, 2), ("way", heads.way, 3), ("arrival", heads.arrival, 4)):
        part, more[name] = _labelled(head, late, ends[:, column])
        loss = loss + DENSE * part
    torch.autograd.backward(loss)
    return _stats("clip", reading, more)


def joint_step(run: Run, draw: random.Random, task: str, frames: int, *, difficulty: float, learn: bool) -> Stats:
    """Draw a batch of one task, add its gradients, and return what was measured; `learn`: the tower's too."""
    if task == "scene":
        return _scene_step(run, draw, learn=learn)
    if task == "clip":
        return _clip_step(run, draw, frames)
    return _text_step(run, draw, task, difficulty, learn=learn)
