"""Temporary heads that predict the dense labels; they are trained along and thrown away."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the usual name

from deploy.demo.layout import Shape
from tests.demo_model.labels import CHARACTER_CLASSES, SIDE, SLOTS, THING_CLASSES, TOKENS

Stats = dict[str, float]
MOST_TILES = 7  # of a training page, with its thumbnail


class VisionHeads(nn.Module):
    """Linear readers of patch features and of projected tokens."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patch_characters = nn.Linear(shape.vision_hidden, SLOTS * CHARACTER_CLASSES)
        self.token_characters = nn.Linear(shape.text_hidden, 4 * SLOTS * CHARACTER_CLASSES)
        self.patch_things = nn.Linear(shape.vision_hidden, THING_CLASSES)
        self.token_things = nn.Linear(shape.text_hidden, 4 * THING_CLASSES)
        self.token_place = nn.Linear(shape.text_hidden, 2)
        self.token_cell = nn.Linear(shape.text_hidden, 2 * SIDE)  # where the token itself lies in its tile


class ClipHeads(nn.Module):
    """Linear readers of the decoder's middle states: what moves, which way, what has just come, where it looked."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.moving = nn.Linear(shape.text_hidden, 2)  # of a thing's token: does it move
        self.thing = nn.Linear(shape.text_hidden, THING_CLASSES)  # of a frame's end: the thing that matters
        self.way = nn.Linear(shape.text_hidden, 4)
        self.arrival = nn.Linear(shape.text_hidden, 2)
        self.place = nn.Linear(shape.text_hidden, 2)  # of the thing that matters, in tiles
        self.shift = nn.Linear(shape.text_hidden, 2)  # of the mover since the first frame, in tiles
        self.start = nn.Linear(shape.text_hidden, 2 * SIDE)  # of a frame's end: the mover's cell in the first frame
        # After each layer, of what a pulled head has looked at: its cell, and its tile on a page.
        self.cells = nn.ModuleList(nn.Linear(shape.text_hidden, 2 * SIDE) for _ in range(shape.text_layers))
        self.tiles = nn.ModuleList(nn.Linear(shape.text_hidden, MOST_TILES) for _ in range(shape.text_layers))


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
    cell, cell_right = own_cell_loss(heads, tokens)
    return patch + token + cell, {"patch": patch_right, "token": token_right, "cell": cell_right}


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
    cell, cell_right = own_cell_loss(heads, tokens)
    loss = patch + token + 2 * place + cell
    return loss, {"thing": float(right), "place": float(place.detach()), "cell": cell_right}


def cell_loss(head: nn.Module, states: torch.Tensor, token: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Loss of the cell that states [k, width] speak of, its column and its row, given each one's token index."""
    logits = head(states).float().view(-1, 2, SIDE)
    wanted = torch.stack((token % SIDE, token % TOKENS // SIDE), 1)
    right = (logits.argmax(-1) == wanted).all(-1).float().mean()
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten()), float(right)


def own_cell_loss(heads: VisionHeads, tokens: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Loss of every token's own cell: the decoder can only follow a line if it can tell where a token lies."""
    flat = tokens.flatten(0, 1)
    return cell_loss(heads.token_cell, flat, torch.arange(len(flat), device=flat.device) % TOKENS)
