"""The model card's layer split: a model too big for one GPU, its layers over several, one GPU busy at a time.

The fallback where tensor parallel does not divide. The vision tower, the projector, the embeddings, the head, the first
layers and the last one live on the first GPU, which therefore counts as half a GPU (the card's `split_model`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch

from pipelines.engine.attention import PagedStep

_LAYER = re.compile(r"model\.language_model\.layers\.(\d+)\.")


def split_layers(layers: int, devices: int) -> list[int]:
    """Return the device of each layer of the language model."""
    per_device = math.ceil(layers / (devices - 0.5))
    counts = [per_device] * devices
    counts[0] = math.ceil(per_device * 0.5)
    where = [device for device, count in enumerate(counts) for _ in range(count)][:layers]
    # The head is on the first device: with the last layer there too, its input needs no copy.
    where[-1] = 0
    return where


def placer(where: list[int], devices: list[torch.device]) -> Callable[[str], torch.device]:
    """Return the device of a tensor by its native name."""

    def place(name: str) -> torch.device:
        match = _LAYER.match(name)
        return devices[where[int(match[1])]] if match else devices[0]

    return place


def connect(model: Any, where: list[int], devices: list[torch.device]) -> None:
    """Move the activations to each layer's device, and the step's description with them, once a device and step."""
    text = model.model.language_model

    def bring(device: torch.device) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            step: PagedStep = kwargs["paged"]
            cos, sin = kwargs["position_embeddings"]
            kwargs = kwargs | {
                "paged": step.on(device),
                "position_embeddings": (cos.to(device, non_blocking=True), sin.to(device, non_blocking=True)),
            }
            return (args[0].to(device, non_blocking=True), *args[1:]), kwargs

        return hook

    for layer, device in zip(text.layers, where, strict=True):
        layer.register_forward_pre_hook(bring(devices[device]), with_kwargs=True)
