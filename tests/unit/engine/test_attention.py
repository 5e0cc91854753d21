"""Every attention back end computes the same thing: a plain softmax over the sequence, wherever its pages lie."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.engine.attention import Backend, PagedCache
from pipelines.engine.backends import SdpaBackend
from pipelines.engine.core import Sampled
from pipelines.engine.errors import BadRequest
from pipelines.engine.graphs import DecodeInputs, graph_sizes
from pipelines.engine.kernels import FlashBackend, TritonBackend, VarlenBackend, choose_backend
from pipelines.engine.plan import StepPlan
from pipelines.engine.scheduler import Limits
from pipelines.engine.types import EngineRequest
from tests.unit.engine.harness import Bench

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
# (decoding lengths), (prefill: rows, keys), heads, kv heads, head_dim, page size
SHAPES = [
    ((1,), (), 4, 4, 16, 8),
    ((5, 200, 17, 64, 65), (), 6, 2, 48, 16),
    ((), ((7, 7), (3, 20)), 4, 2, 16, 8),
    ((9, 130), ((5, 5), (1, 33), (16, 16)), 8, 2, 32, 8),
    ((3, 3, 3), ((4, 12),), 6, 1, 64, 32),
]


def plain(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """[rows, heads, d] over [keys, kv, d]; the last row sees every key."""
    repeat = query.shape[1] // keys.shape[1]
    k, v = keys.repeat_interleave(repeat, dim=1).double(), values.repeat_interleave(repeat, dim=1).double()
    score = torch.einsum("qhd,khd->hqk", query.double(), k) * scale
    hidden = torch.ones(len(query), len(keys), dtype=torch.bool, device=query.device).tril(len(keys) - len(query))
    return torch.einsum("hqk,khd->qhd", score.masked_fill(~hidden, -torch.inf).softmax(-1), v)


def compare(backend: Backend, shape: Any, device: str, dtype: torch.dtype, tolerance: float) -> None:
    decodes, chunks, heads, kv, head, page_size = shape
    draw = torch.Generator().manual_seed(1)

    def tensor(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draw).to(device, dtype)

    lengths = [*decodes, *(keys for _, keys in chunks)]
    queries = [1] * len(decodes) + [rows for rows, _ in chunks]
    counts = [-(-length // page_size) for length in lengths]
    order = np.random.default_rng(2).permutation(sum(counts)) + 1
    tables = np.zeros((len(lengths), max(counts)), dtype=np.int64)
    at = 0
    for row, count in enumerate(counts):
        tables[row, :count] = order[at : at + count]
        at += count
    cache = PagedCache(
        keys=tensor(sum(counts) + 1, page_size, kv, head), values=tensor(sum(counts) + 1, page_size, kv, head)
    )
    query, sequences, first = tensor(sum(queries), heads, head), [], 0
    key, value = (torch.empty(sum(queries), kv, head, device=device, dtype=dtype) for _ in range(2))
    for row, (length, rows) in enumerate(zip(lengths, queries, strict=True)):
        pages = torch.from_numpy(tables[row, : counts[row]]).to(device)
        keys, values = (part[pages].flatten(0, 1)[:length] for part in (cache.keys, cache.values))
        key[first : first + rows], value[first : first + rows] = keys[-rows:], values[-rows:]
        sequences.append((query[first : first + rows], keys, values))
        first += rows
    nothing = np.zeros(0, dtype=np.int64)
    plan = StepPlan(
        tokens=np.zeros(sum(queries), dtype=np.int64),
        positions=nothing,
        write=nothing,
        lengths=np.asarray(lengths, dtype=np.int64),
        queries=np.asarray(queries, dtype=np.int64),
        tables=tables,
        decodes=len(decodes),
        decode_slots=nothing,
        sample=nothing,
        sample_slots=nothing,
        sampling=(),
    )
    state = backend.prepare(plan, torch.device(device))
    found = backend.attend(query, key, value, cache, state, head**-0.5)
    wanted = torch.cat([plain(*sequence, head**-0.5) for sequence in sequences])
    assert found.shape == wanted.shape
    assert float((found.double() - wanted).abs().max()) < tolerance
    if backend.graphable and not chunks:
        state = backend.decode_state(
            torch.from_numpy(tables.astype(np.int32)).to(device),
            torch.tensor(lengths, dtype=torch.int32, device=device),
        )
        again = backend.attend(query, key, value, cache, state, head**-0.5)
        assert torch.equal(again, found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gathering_is_a_plain_softmax(shape: Any, dtype: torch.dtype, tolerance: float) -> None:
    compare(SdpaBackend(shape[-1]), shape, "cpu", dtype, tolerance)


@pytest.mark.skipif(not INTERPRETED, reason="runs in a child process with TRITON_INTERPRET=1")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_triton_kernel_is_a_plain_softmax_under_the_interpreter(shape: Any) -> None:
    compare(TritonBackend(shape[-1]), shape, "cpu", torch.float32, 1e-5)


@pytest.mark.skipif(INTERPRETED, reason="this is the child process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (extra `gpu`)")
def test_the_triton_kernel_runs_under_the_interpreter() -> None:
    """In a child, because Triton reads TRITON_INTERPRET when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "under_the_interpreter", "--no-header", str(Path(__file__))]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(SHAPES) + 1} passed" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (extra `gpu`)")
def test_chunks_are_packed_as_varlen_attention_reads_them() -> None:
    """`varlen_attn` is CUDA's own; a plain one in its place shows that keys, offsets and order are right."""

    def plain_varlen(
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        queries_at: torch.Tensor,
        keys_at: torch.Tensor,
        longest_query: int,
        longest_key: int,
        *,
        scale: float,
        window_size: tuple[int, int],
    ) -> torch.Tensor:
        assert window_size == (-1, 0)
        assert (longest_query, longest_key) == (int(queries_at.diff().max()), int(keys_at.diff().max()))
        parts = []
        for number in range(len(keys_at) - 1):
            rows, seen = (slice(int(at[number]), int(at[number + 1])) for at in (queries_at, keys_at))
            parts.append(plain(query[rows], keys[seen], values[seen], scale))
        return torch.cat(parts).to(query.dtype)

    backend = VarlenBackend(8)
    backend._varlen = plain_varlen
    compare(backend, ((), ((5, 5), (1, 33), (16, 16), (3, 20)), 8, 2, 32, 8), "cpu", torch.float32, 1e-5)


@pytest.mark.skipif(not INTERPRETED, reason="runs in a child process with TRITON_INTERPRET=1")
def test_a_graphable_decode_step_gives_the_engines_own_logits_under_the_interpreter(bench: Bench) -> None:
    """What a CUDA graph would capture, run eagerly: padded rows included, it agrees with the gathered step."""
    limits = Limits(slots=4, pages=60, page_size=8, context=8192, max_rows=512)
    core = bench.core(limits)
    for number in range(3):
        request = EngineRequest(request_id="r", question="Go " * (number + 1), system="")
        core.add(bench.sequence(request, number, limits))
    for _ in range(3):
        core.step()
    step = core.scheduler.schedule()
    assert step is not None
    plan, runner = step.plan, core.runner
    wanted = runner.logits(plan)
    runner._backend = TritonBackend(8)
    padded = DecodeInputs(
        slots=torch.from_numpy(np.pad(plan.decode_slots, (0, 1))),
        positions=torch.from_numpy(np.pad(plan.positions, (0, 1))),
        write=torch.from_numpy(np.pad(plan.write, (0, 1))),
        tables=torch.from_numpy(np.pad(plan.tables, ((0, 1), (0, 2))).astype(np.int32)),
        lengths=torch.from_numpy(np.pad(plan.lengths, (0, 1), constant_values=1).astype(np.int32)),
    )
    assert float((runner.decode(padded)[:3] - wanted).abs().max()) < 1e-4


def test_the_captured_sizes_cover_every_batch() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(16) == (1, 2, 4, 8, 16)
    assert graph_sizes(37) == (1, 2, 4, 8, 16, 24, 32, 37)


KERNELS: list[Callable[[int], Backend]] = [TritonBackend, VarlenBackend]


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", KERNELS)
def test_the_kernels_are_a_plain_softmax_on_a_gpu(make: Callable[[int], Backend], shape: Any) -> None:
    compare(make(shape[-1]), shape, "cuda", torch.bfloat16, 2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES)
def test_flash_attention_is_a_plain_softmax_on_a_gpu(shape: Any) -> None:
    pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    compare(FlashBackend(256), (*shape[:-1], 256), "cuda", torch.bfloat16, 2e-2)


def test_the_choice_on_a_cpu_is_the_exact_one() -> None:
    chosen = choose_backend("auto", torch.device("cpu"), torch.float32, 0)
    assert (chosen.name, chosen.page_size) == ("sdpa", 32)
    assert choose_backend("sdpa", torch.device("cpu"), torch.float32, 8).page_size == 8


def test_flash_attention_refuses_small_pages() -> None:
    with pytest.raises(BadRequest):
        choose_backend("flash", torch.device("cpu"), torch.bfloat16, 16)


def test_no_step_asks_the_device_for_the_shape_of_the_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' search for packed sequences would wait for the device on every step; it must not be reached."""
    from transformers import masking_utils

    def reached(*_: object) -> None:
        raise AssertionError("transformers builds a mask")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", reached)
    limits = Limits(slots=2, pages=60, page_size=8, context=8192, max_rows=64)
    core = bench.core(limits)
    core.add(bench.sequence(EngineRequest(request_id="r", question="Go"), 0, limits))
    for _ in range(3):
        assert all(isinstance(event, Sampled) for event in core.step())
