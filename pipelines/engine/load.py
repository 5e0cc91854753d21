"""Opens a checkpoint and starts an engine on it: the one place where options become tensors and threads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from pipelines.engine.checkpoint import Checkpoint, open_checkpoint
from pipelines.engine.config import ModelConfig
from pipelines.engine.core import EngineCore
from pipelines.engine.errors import CheckpointError
from pipelines.engine.kernels import choose_backend
from pipelines.engine.model import build_model
from pipelines.engine.options import EngineOptions
from pipelines.engine.quantize import edit_for
from pipelines.engine.runner import Runner
from pipelines.engine.scheduler import Limits, Scheduler
from pipelines.engine.service import LocalEngine
from pipelines.engine.tokenizer import Tokenizer, read_tokenizer
from pipelines.engine.types import Accepts, EngineInfo

_log = logging.getLogger(__name__)

_MIB = 1 << 20
_GIB = 1 << 30


def load_engine(folder: Path | str, options: EngineOptions | None = None) -> LocalEngine:
    """Load a checkpoint folder and start its engine; `CheckpointError` where it cannot be loaded as it is."""
    options = options or EngineOptions()
    checkpoint = open_checkpoint(Path(folder))
    tokenizer = read_tokenizer(checkpoint.folder)
    check_vocabulary(tokenizer, checkpoint.config)
    device = choose_device(options)
    dtype = choose_dtype(options, device)
    if options.threads and device.type == "cpu":
        torch.set_num_threads(options.threads)
    model = build_model(
        checkpoint.config,
        checkpoint.tensors(),
        dtype=dtype,
        place=lambda _: device,
        image_token=tokenizer.image_token,
        edit=edit_for(options.quantization, device),
    )
    core = build_core(model, checkpoint.config, options, device=device, dtype=dtype)
    info = describe(checkpoint, options, core, dtype=dtype)
    _log.info("engine.loaded", extra={"model": info.model, "device": info.device, "attention": info.attention})
    return LocalEngine(
        core,
        info=info,
        config=checkpoint.config,
        tokenizer=tokenizer,
        stall_seconds=options.stall_seconds,
        guard=options.guard,
    )


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Refuse a tokenizer that is not this checkpoint's."""
    if tokenizer.size > config.text.vocabulary:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.size} ids but the model {config.text.vocabulary}: they do not match"
        )
    if config.image_token not in (None, tokenizer.image_token):
        raise CheckpointError(f"image_token_id is {config.image_token} but the tokenizer says {tokenizer.image_token}")


def choose_device(options: EngineOptions) -> torch.device:
    """Return the first device of the options; auto is the first GPU, else the CPU."""
    name = options.device.split(",")[0]
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_dtype(options: EngineOptions, device: torch.device) -> torch.dtype:
    """Return the dtype of weights and arithmetic."""
    if options.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found: torch.dtype = getattr(torch, options.dtype)
    return found


def build_core(
    model: Any, config: ModelConfig, options: EngineOptions, *, device: torch.device, dtype: torch.dtype
) -> EngineCore:
    """Return scheduler, cache and runner for a model that is loaded."""
    on_cpu = device.type == "cpu"
    backend = choose_backend(options.attention, device, dtype, options.page_size)
    page_size = backend.page_size
    page_bytes = 2 * config.text.layers * page_size * config.text.kv_heads * config.text.head_dim * dtype.itemsize
    wanted = options.max_slots * (-(-config.text.max_positions // page_size))
    pages = max(min(_cache_bytes(options, device) // page_bytes, wanted), 1)
    limits = Limits(
        slots=options.max_slots,
        pages=pages,
        page_size=page_size,
        context=config.text.max_positions,
        max_rows=options.max_rows or (512 if on_cpu else 4096),
        tile_budget=options.tile_budget or (4 if on_cpu else 16),
        embedding_tiles=options.embedding_tiles or (256 if on_cpu else 1024),
    )
    runner = Runner(
        model,
        config,
        backend=backend,
        device=device,
        dtype=dtype,
        pages=pages,
        page_size=page_size,
        slots=options.max_slots,
        graphs=options.cuda_graphs,
    )
    return EngineCore(Scheduler(limits), runner, lookahead=0 if on_cpu else 1)


def _cache_bytes(options: EngineOptions, device: torch.device) -> int:
    if options.kv_cache_bytes:
        return options.kv_cache_bytes
    if device.type == "cpu":
        return 512 * _MIB
    free, total = torch.cuda.mem_get_info(device)
    # What stays free is for activations (a step's rows and tiles), the embeddings of admitted images and fragmentation.
    return max(int(free - 0.08 * total - 4 * _GIB), _GIB)


def describe(checkpoint: Checkpoint, options: EngineOptions, core: EngineCore, *, dtype: torch.dtype) -> EngineInfo:
    """Return what the engine says of itself."""
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
        device=str(core.runner.device),
        dtype=str(dtype).removeprefix("torch.") + suffix,
        attention=core.runner.attention,
        trained=config.trained,
    )
