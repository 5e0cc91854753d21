"""Muon for the layers' matrices and AdamW for the rest, over flat bfloat16 weights with a float32 master copy.

Muon: Keller Jordan et al., https://kellerjordan.github.io/posts/muon/ (momentum made orthogonal by five
Newton-Schulz steps). Gradients are averaged over data-parallel ranks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import distributed, nn

_NESTEROV = 0.95
_DECAY = 0.01


def split(module: nn.Module, prefix: str = "") -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices of the layers, which Muon updates, and every other parameter."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        is_layer = ".layer" in f"{prefix}.{name}" and parameter.ndim == 2
        (matrices if is_layer else others).append(parameter)
    return matrices, others


class _Flat:
    """Parameters moved into one bfloat16 tensor, with gradients and a float32 master of the same length."""

    def __init__(self, parameters: list[nn.Parameter], device: torch.device) -> None:
        count = sum(p.numel() for p in parameters)
        self.parameters = parameters
        self.weights = torch.empty(count, dtype=torch.bfloat16, device=device)
        self.grads = torch.zeros(count, dtype=torch.bfloat16, device=device)
        self.master = torch.empty(count, device=device)
        self.mean = torch.zeros(count, device=device)
        self.starts: list[int] = []
        at = 0
        for parameter in parameters:
            end = at + parameter.numel()
            self.master[at:end] = parameter.data.float().flatten()
            parameter.data = self.weights[at:end].view(parameter.shape)
            parameter.grad = self.grads[at:end].view(parameter.shape)
            self.starts.append(at)
            at = end
        self.weights.copy_(self.master)

    def gather(self) -> float:
        """Average the gradients over the ranks into `mean` and return their norm."""
        self.mean.copy_(self.grads)
        self.grads.zero_()
        if len(self.mean) and distributed.is_initialized():
            distributed.all_reduce(self.mean)
            self.mean.div_(distributed.get_world_size())
        return float(self.mean.norm())


def _orthogonal(batch: torch.Tensor) -> torch.Tensor:
    """Make each matrix of [n, rows, columns] nearly orthogonal by Newton-Schulz steps in bfloat16."""
    tall = batch.shape[1] > batch.shape[2]
    out = batch.transpose(1, 2) if tall else batch
    out = (out / (out.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)).bfloat16()
    for _ in range(5):
        square = torch.bmm(out, out.transpose(1, 2))
        poly = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        out = torch.baddbmm(out, poly, out, beta=3.4445)
    return (out.transpose(1, 2) if tall else out).float()


class Optimiser:
    """Updates one part of the network; `step` takes the AdamW rate and the Muon rate."""

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter]) -> None:
        device = others[0].device
        self._muon = _Flat(matrices, device)
        self._momentum = torch.zeros_like(self._muon.master)
        self._adam = _Flat(others, device)
        self._master = nn.Parameter(self._adam.master)
        self._adamw = torch.optim.AdamW([self._master], lr=1e-3, betas=(0.9, 0.98), weight_decay=_DECAY, fused=True)
        self._groups: dict[torch.Size, list[int]] = {}
        for parameter, start in zip(matrices, self._muon.starts, strict=True):
            self._groups.setdefault(parameter.shape, []).append(start)

    def step(self, adam_rate: float, muon_rate: float) -> float:
        """Apply the gathered gradients and return the norm of AdamW's part; a step that is not finite is skipped."""
        norms = self._muon.gather(), self._adam.gather()
        if not all(map(math.isfinite, norms)):
            return math.inf
        flat = self._muon
        self._momentum.lerp_(flat.mean, 1 - _NESTEROV)
        flat.mean.lerp_(self._momentum, _NESTEROV)
        flat.master.mul_(1 - muon_rate * _DECAY)
        for (rows, columns), starts in self._groups.items():
            size = rows * columns
            stacked = torch.stack([flat.mean[at : at + size].view(rows, columns) for at in starts])
            update = _orthogonal(stacked).mul_(-muon_rate * math.sqrt(max(1.0, rows / columns)))
            for at, part in zip(starts, update, strict=True):
                flat.master[at : at + size].add_(part.reshape(-1))
        flat.weights.copy_(flat.master)
        self._master.grad = self._adam.mean.mul_(min(1.0, 1.0 / max(norms[1], 1e-9)))
        self._adamw.param_groups[0]["lr"] = adam_rate
        self._adamw.step()
        self._adam.weights.copy_(self._adam.master)
        return norms[1]

    def masters(self) -> dict[int, torch.Tensor]:
        """Return float32 weights by the id of their parameter."""
        return {
            id(p): flat.master[at : at + p.numel()].view(p.shape)
            for flat in (self._muon, self._adam)
            for p, at in zip(flat.parameters, flat.starts, strict=True)
        }

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {
            "muon": self._muon.master.clone(),
            "momentum": self._momentum.clone(),
            "adam": self._adam.master.clone(),
            "adamw": self._adamw.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._muon.master.copy_(state["muon"])
        self._momentum.copy_(state["momentum"])
        self._adam.master.copy_(state["adam"])
        self._adamw.load_state_dict(state["adamw"])
        for flat in (self._muon, self._adam):
            flat.weights.copy_(flat.master)
