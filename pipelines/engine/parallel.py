"""Tensor parallel: the language model in slices, a full vision tower on every rank, tiles split over the ranks.

Rank 0 schedules and sends each plan to the others, which run the same step on their slices; the partial results of
the attention and feed-forward outputs are summed (Shoeybi et al., "Megatron-LM", 2019). 25 vision heads divide by
nothing useful, and the tower is bound by arithmetic: whole tiles a rank are the better split. A rank that fails or
dies takes the instance down, for the others cannot go on without it; rank 0 then answers every open request with
`EngineStopped`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipelines.engine.config import ModelConfig
from pipelines.engine.errors import CheckpointError
from pipelines.engine.plan import StepPlan
from pipelines.engine.runner import DeviceLost, Runner, Ticket

_COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_ROW = ("o_proj", "down_proj")


class Peers:
    """One rank's view of the group. `control` carries plans between hosts' memories, the other two carry tensors."""

    def __init__(self, rank: int, world: int, *, rendezvous: str, cuda: bool) -> None:
        self.rank = rank
        self.world = world
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", init_method=rendezvous, rank=rank, world_size=world
        )
        self._control = dist.new_group(backend="gloo")
        # The vision tower runs on a stream of its own: a shared communicator would mix the order of the two streams.
        self._text = dist.new_group()
        self._vision = dist.new_group()

    def send(self, plan: StepPlan | None) -> None:
        """Give the other ranks a plan; None ends them."""
        dist.broadcast_object_list([plan], src=0, group=self._control)

    def receive(self) -> StepPlan | None:
        """Wait for the next plan of rank 0."""
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0, group=self._control)
        found: StepPlan | None = box[0]
        return found

    def least(self, value: int) -> int:
        """Return the smallest of the ranks' values."""
        tensor = torch.tensor([value])
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=self._control)
        return int(tensor)

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        dist.all_reduce(values, group=self._text)
        return values

    def agree(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return rank 0's tokens: a rounding of one rank must not split the group."""
        dist.broadcast(tokens, src=0, group=self._text)
        return tokens

    def spread(self, embed: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
        """Embed `[n, ...]` tiles, each rank its share, and return all of them on every rank."""
        share = -(-len(pixels) // self.world)
        mine = pixels[self.rank * share : (self.rank + 1) * share]
        if len(mine) < share:
            # Equal shapes for the exchange: the surplus tiles are black, and nobody reads them.
            mine = torch.cat([mine, mine.new_zeros(share - len(mine), *pixels.shape[1:])])
        part = embed(mine).contiguous()
        parts = [torch.empty_like(part) for _ in range(self.world)]
        dist.all_gather(parts, part, group=self._vision)
        return torch.cat(parts)[: len(pixels)]

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


class _RowParallel(nn.Linear):
    """A linear layer over a slice of its inputs, whose outputs are summed over the ranks."""

    def __init__(self, in_features: int, out_features: int, peers: Peers) -> None:
        super().__init__(in_features, out_features, bias=False)
        self._peers = peers

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[..., in / ranks]` to `[..., out]`."""
        return self._peers.add(super().forward(values))


def check_divisible(config: ModelConfig, world: int) -> None:
    """Raise `CheckpointError` where the heads or the feed-forward width do not divide by the number of ranks."""
    if config.text.kv_heads % world or config.text.ffn % world:
        raise CheckpointError(f"the language model's {config.text.kv_heads} key/value heads do not divide by {world}")


def narrow(model: Any, peers: Peers) -> None:
    """Make the empty model's language layers this rank's slices."""
    for layer in model.model.language_model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, child in list(block.named_children()):
                if name in _COLUMN:
                    made: nn.Module = nn.Linear(child.in_features, child.out_features // peers.world, bias=False)
                elif name in _ROW:
                    made = _RowParallel(child.in_features // peers.world, child.out_features, peers)
                else:
                    continue
                setattr(block, name, made)


def slices(tensors: Iterable[tuple[str, torch.Tensor]], peers: Peers) -> Iterator[tuple[str, torch.Tensor]]:
    """Cut the language model's tensors to this rank's part; heads stay whole, for the rows of a head lie together."""
    for name, tensor in tensors:
        leaf = name.split(".")[-2] if "." in name else ""
        if name.startswith("model.language_model.layers.") and leaf in _COLUMN + _ROW:
            side = 0 if leaf in _COLUMN else 1
            part = tensor.chunk(peers.world, dim=side)[peers.rank].contiguous()
            yield name, part
        else:
            yield name, tensor


class ParallelRunner(Runner):
    """Rank 0's runner. Any failure of a step is the instance's: the other ranks may have gone on."""

    peers: Peers

    def launch(self, plan: StepPlan) -> Ticket:
        """Send the plan, then run it here."""
        try:
            self.peers.send(plan)
            return super().launch(plan)
        except Exception as error:
            raise DeviceLost(f"a step failed on rank 0 or the group broke: {error}") from error


def follow(runner: Runner, peers: Peers) -> None:
    """Run rank 0's plans until it ends them."""
    while (plan := peers.receive()) is not None:
        if plan.visual:
            # Rank 0 has seen its tiles finished; here they may still be under way.
            runner.vision.join()
        runner.launch(plan)
        runner.vision.finished(wait=False)
