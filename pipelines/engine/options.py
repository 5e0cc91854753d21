"""How an engine is to run. Free of torch; zeros and `auto` are decided from the device at load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = str
Dtype = Literal["auto", "bfloat16", "float16", "float32", "float64"]
Quantization = Literal["none", "int8", "fp8"]
Parallel = Literal["auto", "replica", "tensor", "layers"]
Attention = Literal["auto", "sdpa", "triton", "varlen", "flash"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of `load_engine`.

    Args:
        model_name: the name that `EngineInfo.model` shows; empty: the folder's.
        device: `auto`, `cpu`, `cuda`, or a list such as `cuda:0,1`.
        dtype: of weights and arithmetic; auto: float32 on a CPU, bfloat16 on a GPU.
        quantization: of the language model's linear layers alone.
        fp8_vision: quantise the vision tower too, if its visual tokens stay within a tenth of what they were.
        parallel: how several devices are used.
        attention: the attention back end.
        max_slots: sequences that run at the same time.
        threads: CPU threads of torch; 0: leave torch's own number.
        kv_cache_bytes: size of the paged cache; 0: from free memory.
        page_size: tokens a page; 0: the back end's own.
        max_rows: rows of the language model in one step; 0: from the device.
        tile_budget: tiles of the vision tower in one step; 0: from the device.
        embedding_tiles: bound of the cache of visual embeddings, in tiles; 0: from the device.
        stall_seconds: `healthy()` is False after so long without a step while work waits.
        guard: stop an answer that repeats itself, try once more with sampling, and flag it if it stays so.
        fused: join the language model's small steps in Triton kernels (GPU only).
        cuda_graphs: replay decode steps of fixed batch sizes (GPU only).
    """

    model_name: str = ""
    device: Device = "auto"
    dtype: Dtype = "auto"
    quantization: Quantization = "none"
    fp8_vision: bool = False
    parallel: Parallel = "auto"
    attention: Attention = "auto"
    max_slots: int = 16
    threads: int = 0
    kv_cache_bytes: int = 0
    page_size: int = 0
    max_rows: int = 0
    tile_budget: int = 0
    embedding_tiles: int = 0
    stall_seconds: float = 120.0
    guard: bool = True
    fused: bool = True
    cuda_graphs: bool = True
