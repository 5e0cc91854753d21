"""Stage one: the vision tower and projector learn from dense labels alone, with no decoder.

Joining the decoder before the tower reads destroys the tower, so difficulty and stage both wait for accuracy.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from deploy.demo.documents import TILE
from deploy.demo.scenes import Scene, draw_things, random_scene
from tests.demo_model.heads import Stats, character_loss, thing_loss
from tests.demo_model.labels import TOKENS, by_token, page_labels, thing_labels, thing_token, tiles_of
from tests.demo_model.network import project, see
from tests.demo_model.pages import PageKind, random_page
from tests.demo_model.run import Run

PAGES, SCENES = 10, 2  # tiles of a step on each rank


def scene_arrays(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return patch labels [n, patches], token labels [n, tokens, 4] and centres [n, tokens, 2] of scenes."""
    labels = np.stack([thing_labels(scene.things) for scene in scenes])
    places = np.full((len(scenes), TOKENS, 2), -1.0, np.float32)
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            places[number, thing_token(thing)] = (thing.x / TILE, thing.y / TILE)
    return torch.from_numpy(labels), torch.from_numpy(by_token(labels)), torch.from_numpy(places)


def vision_step(run: Run, draw: random.Random, *, difficulty: float) -> Stats:
    """Draw a batch, add its gradients, and return what was measured."""
    kinds = [PageKind(lines=None if draw.random() < 0.85 else draw.randint(1, 6), plain=0.45) for _ in range(PAGES)]
    pages = [random_page(draw, kind, difficulty=difficulty) for kind in kinds]
    scenes = [random_scene(draw) for _ in range(SCENES)]
    images = [page.image for page in pages] + [draw_things(scene.things, scene.ground) for scene in scenes]
    tiles = torch.from_numpy(np.concatenate([tiles_of(image) for image in images])).to(run.device)
    labels = np.concatenate([page_labels(page)[0] for page in pages])
    features = see(run.network, tiles, run.shape)
    tokens = project(run.network, features)
    characters = torch.from_numpy(labels).to(run.device), torch.from_numpy(by_token(labels)).to(run.device)
    loss, stats = character_loss(run.heads, features[:PAGES], tokens[:PAGES], *characters)
    things = (part.to(run.device) for part in scene_arrays(scenes))
    thing, more = thing_loss(run.heads, features[PAGES:], tokens[PAGES:], *things)
    torch.autograd.backward(loss + 0.5 * thing)
    return {"loss": float(loss.detach()), **stats, **more}
