"""Temporary heads that predict the dense labels; they are trained along and thrown away."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the usual name

from deploy.demo.layout import Shape
from tests.demo_model.labels import CHARACTER_CLASSES, SLOTS, THING_CLASSES

Stats = dict[str, float]


class VisionHeads(nn.Module):
    """Linear readers of patch features and of projected tokens."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patch_characters = nn.Linear(shape.vision_hidden, SLOTS * CHARACTER_CLASSES)
        self.token_characters = nn.Linear(shape.text_hidden, 4 * SLOTS * CHARACTER_CLASSES)
        self.patch_things = nn.Linear(shape.vision_hidden, THING_CLASSES)
        self.token_things = nn.Linear(shape.text_hidden, 4 * THING_CLASSES)
        self.token_place = nn.Linear(shape.text_hidden, 2)


class ClipHeads(nn.Module):
    """Linear readers of the decoder's middle states: what moves, which way, what has just come."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.moving = nn.Linear(shape.text_hidden, 2)  # of a thing's token: does it move
        self.thing = nn.Linear(shape.text_hidden, THING_CLASSES)  # of a frame's end: the thing that matters
        self.way = nn.Linear(shape.text_hidden, 4)
        self.arrival = nn.Linear(shape.text_hidden, 2)
        self.place = nn.Linear(shape.text_hidden, 2)  # of the thing that matters, in tiles
        self.shift = nn.Linear(shape.text_hidden, 2)  # of the mover since the first frame, in tiles


def _read(head: nn.Linear, states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Cross-entropy over the labelled states and a fifth of the empty ones; and accuracy on labels above 0."""
    kept = (labels > 0).any(-1) | (torch.rand(labels.shape[:-1], device=labels.device) < 0.2)
    wanted = labels[kept]
    logits = head(states[kept]).view(*wanted.shape, CHARACTER_CLASSES).float()
    loss = F.cross_entropy(logits.flatten(0, -2), wanted.flatten())
    with torch.no_grad():
        full = wanted > 0
        right = (logits.argmax(-1) == wanted)[full].float().mean() if full.any() else torch.tensor(0.0)
    return loss, float(right)


def character_loss(
    heads: VisionHeads,
    features: torch.Tensor,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    token_labels: torch.Tensor,
) -> tuple[torch.Tensor, Stats]:
    """Loss of the characters in patches [n, patches, SLOTS] and in tokens [n, tokens, 4, SLOTS]."""
    patch, patch_right = _read(heads.patch_characters, features, labels)
    token, token_right = _read(heads.token_characters, tokens, token_labels.flatten(2))
    return patch + token, {"patch": patch_right, "token": token_right}


def thing_loss(
    heads: VisionHeads,
    features: torch.Tensor,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    token_labels: torch.Tensor,
    places: torch.Tensor,
) -> tuple[torch.Tensor, Stats]:
    """Loss of the thing over each patch [n, patches] and token [n, tokens, 4], and of where its centre lies.

    `places` is [n, tokens, 2] in tiles from the tile's corner, below 0 where no centre is known.
    """
    weight = torch.ones(THING_CLASSES, device=labels.device)
    weight[0] = 0.2
    logits = heads.patch_things(features).float()
    patch = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight)
    read = heads.token_things(tokens).view(*token_labels.shape, THING_CLASSES).float()
    token = F.cross_entropy(read.flatten(0, -2), token_labels.flatten(), weight)
    known = places[..., 0] >= 0
    place = (heads.token_place(tokens[known]).float() - places[known]).abs().mean()
    with torch.no_grad():
        right = (read.argmax(-1) == token_labels)[token_labels > 0].float().mean()
    return patch + token + 2 * place, {"thing": float(right), "place": float(place.detach())}
