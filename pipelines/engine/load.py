"""Opens a checkpoint and starts an engine on it: the one place where options become tensors and threads."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.engine.checkpoint import Checkpoint, open_checkpoint
from pipelines.engine.config import ModelConfig, read_config
from pipelines.engine.core import EngineCore
from pipelines.engine.errors import CheckpointError
from pipelines.engine.kernels import choose_backend
from pipelines.engine.layers import connect, placer, split_layers
from pipelines.engine.model import build_model
from pipelines.engine.options import EngineOptions
from pipelines.engine.parallel import ParallelRunner, Peers, check_divisible, narrow, slices
from pipelines.engine.quantize import edit_for, quantize_vision
from pipelines.engine.ranks import Ranks
from pipelines.engine.runner import Runner
from pipelines.engine.scheduler import Limits, Scheduler
from pipelines.engine.service import LocalEngine
from pipelines.engine.tokenizer import Tokenizer, read_tokenizer
from pipelines.engine.types import Accepts, EngineInfo
from pipelines.engine.vision import VisionRunner

_log = logging.getLogger(__name__)

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One rank, ready to run."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    core: EngineCore
    dtype: torch.dtype


def load_engine(folder: Path | str, options: EngineOptions | None = None) -> LocalEngine:
    """Load a checkpoint folder and start its engine; `CheckpointError` where it cannot be loaded as it is."""
    options, folder = options or EngineOptions(), Path(folder)
    devices = choose_devices(options)
    ranks: Ranks | None = None
    peers: Peers | None = None
    if choose_parallel(options, devices, folder) == "tensor":
        options = replace(options, parallel="tensor", device=",".join(map(str, devices)))
        cuda = devices[0].type == "cuda"
        check_divisible(open_checkpoint(folder).config, len(devices))
        if options.quantization != "none":
            raise CheckpointError("quantised weights run on one GPU, or one replica a GPU, not in slices")
        ranks = Ranks(folder, options, world=len(devices), cuda=cuda)
        peers = Peers(0, len(devices), rendezvous=ranks.rendezvous, cuda=cuda)
    try:
        loaded = load_rank(folder, options, peers=peers)
    except BaseException:
        if ranks is not None:
            # The others wait for this rank in a collective that it will not join.
            ranks.close(timeout=0.0)
        raise
    info = describe(loaded, options)
    _log.info("engine.loaded", extra={"model": info.model, "device": info.device, "attention": info.attention})

    def close() -> None:
        if ranks is not None and peers is not None:
            if engine.alive:
                peers.send(None)
            ranks.close()
            peers.close()

    engine = LocalEngine(
        loaded.core,
        info=info,
        config=loaded.checkpoint.config,
        tokenizer=loaded.tokenizer,
        stall_seconds=options.stall_seconds,
        guard=options.guard,
        on_close=close,
    )
    if ranks is not None:
        ranks.watch(engine.lose)
    return engine


def load_rank(folder: Path, options: EngineOptions, *, peers: Peers | None = None) -> Loaded:
    """Load the whole model, or one rank's slice of it, and return what runs it."""
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    tokenizer = read_tokenizer(folder)
    check_vocabulary(tokenizer, config)
    devices = choose_devices(options)
    device = devices[peers.rank] if peers else devices[0]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif options.threads:
        torch.set_num_threads(options.threads)
    dtype = choose_dtype(options, device)
    tensors = checkpoint.tensors()
    where: list[int] | None = None
    quantise = edit_for(options.quantization, device)
    if peers is not None:
        tensors = slices(tensors, peers)
    elif choose_parallel(options, devices, folder) == "layers":
        where = split_layers(config.text.layers, len(devices))
    model = build_model(
        config,
        tensors,
        dtype=dtype,
        place=placer(where, devices) if where else lambda _: device,
        image_token=tokenizer.image_token,
        edit=(lambda model: narrow(model, peers)) if peers else quantise,
    )
    if where:
        connect(model, where, devices)
    if options.fp8_vision:
        quantize_vision(model.model.vision_tower, lambda: probe_tokens(model, config, device=device, dtype=dtype))
    if device.type == "cuda" and options.fused and importlib.util.find_spec("triton") is not None:
        from pipelines.engine.fused import fuse  # noqa: PLC0415 - triton is not everywhere

        fuse(model)
    core = build_core(
        model,
        config,
        options,
        device=device,
        dtype=dtype,
        peers=peers,
        layer_device=(lambda number: devices[where[number]]) if where else None,
    )
    return Loaded(checkpoint=checkpoint, tokenizer=tokenizer, core=core, dtype=dtype)


def probe_tokens(model: Any, config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return the visual tokens of two fixed tiles: noise, and a page-like one of dark strokes on white."""
    size = config.vision.image_size
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, size, size, 3), generator=draw, dtype=torch.uint8)
    pixels[1] = 255
    pixels[1, ::9, 8:-8] = 20
    vision = VisionRunner(model, device=device, dtype=dtype, tokens=config.tokens_per_tile, hidden=config.text.hidden)
    with torch.inference_mode():
        return vision.tower(vision.normalise(pixels.to(device)))[1]


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Refuse a tokenizer that is not this checkpoint's."""
    if tokenizer.size > config.text.vocabulary:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.size} ids but the model {config.text.vocabulary}: they do not match"
        )
    if config.image_token not in (None, tokenizer.image_token):
        raise CheckpointError(f"image_token_id is {config.image_token} but the tokenizer says {tokenizer.image_token}")


def choose_devices(options: EngineOptions) -> list[torch.device]:
    """Return the devices of the options, `cuda:0,1` or `cpu`; auto is all visible GPUs, else the CPU."""
    if options.device in ("auto", "cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [torch.device("cuda", number) for number in range(count)] or [torch.device("cpu")]
        return found[:1] if options.parallel == "replica" else found
    names = options.device.split(",")
    kind = names[0].partition(":")[0]
    return [torch.device(name if name.startswith(kind) else f"{kind}:{name}") for name in names]


def choose_parallel(options: EngineOptions, devices: list[torch.device], folder: Path) -> str:
    """Return `none`, `tensor` or `layers`. Auto prefers tensor parallel where the heads divide."""
    if len(devices) == 1 or options.parallel == "replica":
        return "none"
    if options.parallel != "auto":
        return options.parallel
    return "tensor" if read_config(folder).text.kv_heads % len(devices) == 0 else "layers"


def choose_dtype(options: EngineOptions, device: torch.device) -> torch.dtype:
    """Return the dtype of weights and arithmetic."""
    if options.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found: torch.dtype = getattr(torch, options.dtype)
    return found


def build_core(
    model: Any,
    config: ModelConfig,
    options: EngineOptions,
    *,
    device: torch.device,
    dtype: torch.dtype,
    peers: Peers | None = None,
    layer_device: Callable[[int], torch.device] | None = None,
) -> EngineCore:
    """Return scheduler, cache and runner for a model that is loaded."""
    on_cpu = device.type == "cpu"
    backend = choose_backend(options.attention, device, dtype, options.page_size)
    page_size = backend.page_size
    world = peers.world if peers else 1
    page_bytes = (
        2 * config.text.layers * page_size * config.text.kv_heads * config.text.head_dim * dtype.itemsize // world
    )
    wanted = options.max_slots * (-(-config.text.max_positions // page_size))
    pages = max(min(_cache_bytes(options, device) // page_bytes, wanted), 1)
    if peers is not None:
        pages = peers.least(pages)
    limits = Limits(
        slots=options.max_slots,
        pages=pages,
        page_size=page_size,
        context=config.text.max_positions,
        max_rows=options.max_rows or (512 if on_cpu else 4096),
        tile_budget=options.tile_budget or (4 if on_cpu else 16),
        embedding_tiles=options.embedding_tiles or (256 if on_cpu else 1024),
    )
    kind = ParallelRunner if peers is not None and peers.rank == 0 else Runner
    runner = kind(
        model,
        config,
        backend=backend,
        device=device,
        dtype=dtype,
        pages=pages,
        page_size=page_size,
        slots=options.max_slots,
        # Collectives inside a graph, and layers on several devices, are not captured.
        graphs=options.cuda_graphs and peers is None and layer_device is None,
        group=peers,
        layer_device=layer_device,
    )
    if isinstance(runner, ParallelRunner) and peers is not None:
        runner.peers = peers
    return EngineCore(Scheduler(limits), runner, lookahead=0 if on_cpu else 1)


def _cache_bytes(options: EngineOptions, device: torch.device) -> int:
    if options.kv_cache_bytes:
        return options.kv_cache_bytes
    if device.type == "cpu":
        return 512 * _MIB
    free, total = torch.cuda.mem_get_info(device)
    # What stays free is for activations (a step's rows and tiles), the embeddings of admitted images and fragmentation.
    return max(int(free - 0.08 * total - 4 * _GIB), _GIB)


def describe(loaded: Loaded, options: EngineOptions) -> EngineInfo:
    """Return what the engine says of itself."""
    checkpoint, core, dtype = loaded.checkpoint, loaded.core, loaded.dtype
    config, limits = checkpoint.config, core.scheduler.limits
    suffix = "" if options.quantization == "none" else f", {options.quantization} language model"
    return EngineInfo(
        model=options.model_name or checkpoint.folder.name,
        weights_hash=checkpoint.weights_hash(),
        accepts=Accepts.TILES,
        slots=limits.slots,
        context_length=min(limits.context, limits.pages * limits.page_size),
        image_size=config.vision.image_size,
        tokens_per_tile=config.tokens_per_tile,
        device=",".join(dict.fromkeys(map(str, choose_devices(options)))),
        dtype=str(dtype).removeprefix("torch.") + suffix,
        attention=core.runner.attention,
        trained=config.trained,
    )
