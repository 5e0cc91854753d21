"""The fused kernels compute what the native modules compute; under Triton's interpreter, in a child process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import silu

from pipelines.engine.scheduler import Limits
from pipelines.engine.types import EngineRequest, GenerationParams
from tests.unit.engine.conftest import tiles
from tests.unit.engine.harness import load_bench, run

PRESENT = importlib.util.find_spec("triton") is not None
INTERPRETED = PRESENT and os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="runs in a child process with TRITON_INTERPRET=1")


@pytest.mark.skipif(INTERPRETED, reason="this is the child process")
@pytest.mark.skipif(not PRESENT, reason="triton is not installed (extra `gpu`)")
def test_the_fused_kernels_run_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-k", "interpreted", "--no-header", str(Path(__file__))]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "4 passed" in done.stdout


@inside
def test_interpreted_norm_is_the_native_one() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from pipelines.engine.triton_fused import rms_norm

    for dtype in (torch.float32, torch.float16):
        native = LlamaRMSNorm(100, eps=1e-5).to(dtype).requires_grad_(requires_grad=False)
        torch.nn.init.normal_(native.weight)
        values = torch.randn(1, 7, 100).to(dtype)
        difference = (rms_norm(values, native.weight, 1e-5) - native(values)).abs().max()
        assert float(difference) <= (1e-6 if dtype is torch.float32 else 4e-3)


@inside
def test_interpreted_gate_is_the_plain_one() -> None:
    from pipelines.engine.triton_fused import silu_gate

    both = torch.randn(1, 5, 2 * 1100)
    gate, up = both.chunk(2, dim=-1)
    assert float((silu_gate(both) - silu(gate) * up).abs().max()) < 1e-6


@inside
@pytest.mark.parametrize("quantised", [False, True])
def test_interpreted_layers_answer_like_the_native_ones(checkpoint: Path, quantised: bool) -> None:
    from pipelines.engine.fused import FusedAttention, FusedMlp, FusedNorm, fuse
    from pipelines.engine.kernels import TritonBackend
    from pipelines.engine.quantize import edit_for

    limits = Limits(slots=2, pages=60, page_size=8, context=8192, max_rows=64, tile_budget=4, embedding_tiles=8)
    kind = "fp8" if quantised else "none"
    native, fused = (load_bench(checkpoint, torch.float32, edit=edit_for(kind, torch.device("cpu"))) for _ in range(2))
    fuse(fused.model)
    layer = fused.model.model.language_model.layers[0]
    assert isinstance(layer.self_attn, FusedAttention)
    assert isinstance(layer.mlp, FusedMlp)
    assert isinstance(fused.model.model.vision_tower.encoder.layer[0].attention.q_norm, FusedNorm)
    answers = []
    for bench in (native, fused):
        core = bench.core(limits)
        if bench is fused:
            core.runner._backend = TritonBackend(8)
        # One tile and few tokens: the interpreter takes a Python loop for every row.
        params = GenerationParams(max_new_tokens=3)
        requests = [
            EngineRequest(request_id="a", question="Go", system="", media=tiles(1), params=params),
            EngineRequest(request_id="b", question="Go", system="", params=params),
        ]
        sequences = [bench.sequence(request, n, limits) for n, request in enumerate(requests)]
        found = run(core, sequences)
        answers.append([found[each] for each in sequences])
    assert answers[0] == answers[1]
