from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engine.errors import CheckpointError
from pipelines.engine.quantize import FP8, VISION_LIMIT, Fp8Linear, edit_for, emulate, quantize_rows, quantize_vision
from pipelines.engine.service import LocalEngine
from pipelines.engine.types import EngineRequest, GenerationParams
from tests.unit.engine.conftest import tiles


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), size=st.sampled_from([1e-6, 1.0, 1e4]))
def test_rows_keep_three_bits_of_mantissa(seed: int, size: float) -> None:
    values = torch.randn(7, 64, generator=torch.Generator().manual_seed(seed)) * size
    quantised, scale = quantize_rows(values)
    assert quantised.dtype == FP8
    largest = values.abs().amax(-1, keepdim=True)
    # Half a unit in the last place of e4m3, or of its subnormals (2^-9 of a scale in which the largest value is 448).
    allowed = values.abs() * 2**-4 + largest / 448 * 2**-10
    assert bool(((quantised.float() * scale - values).abs() <= allowed * 1.0001).all())


def test_a_row_of_zeros_stays_zero() -> None:
    quantised, scale = quantize_rows(torch.zeros(2, 16))
    assert torch.isfinite(scale).all()
    assert not quantised.float().any()


def test_a_layer_is_near_the_layer_it_replaces() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, values = torch.randn(48, 256, generator=draw), torch.randn(2, 5, 256, generator=draw)
    layer = Fp8Linear(256, 48)
    layer.load_weight("weight", weight)
    found, wanted = layer(values), values @ weight.T
    assert found.shape == wanted.shape
    # Each side is off by at most 2^-4, about 2^-4 / sqrt(3) in the mean; the two errors are independent.
    assert float((found - wanted).norm() / wanted.norm()) < 2**-4 / 3**0.5 * 2**0.5
    with pytest.raises(CheckpointError):
        layer.load_weight("bias", torch.zeros(48))


def test_the_emulation_is_the_product_of_the_dequantised_sides() -> None:
    draw = torch.Generator().manual_seed(1)
    weight, scale = quantize_rows(torch.randn(8, 32, generator=draw))
    values = torch.randn(3, 32, generator=draw, dtype=torch.float64)
    quantised, row_scale = quantize_rows(values)
    wanted = (quantised.double() * row_scale.double()) @ (weight.double() * scale.double()).T
    assert float((emulate(values, weight, scale) - wanted).abs().max()) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 16, 100])
def test_the_scaled_matmul_agrees_with_its_emulation(rows: int) -> None:
    draw = torch.Generator().manual_seed(2)
    layer = Fp8Linear(512, 256)
    layer.load_weight("weight", torch.randn(256, 512, generator=draw).cuda())
    values = torch.randn(rows, 512, generator=draw).cuda().bfloat16()
    found, wanted = layer(values).float(), emulate(values, layer.weight, layer.scale).float()
    assert float((found - wanted).norm() / wanted.norm()) < 5e-3


def test_only_the_language_models_layers_are_replaced(checkpoint: Path, start: Callable[..., LocalEngine]) -> None:
    engine = start(checkpoint, quantization="fp8", dtype="float32")
    model: Any = engine._core.runner._model
    replaced = {name for name, module in model.named_modules() if isinstance(module, Fp8Linear)}
    assert len(replaced) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in replaced)
    assert model.lm_head.weight.dtype == torch.float32
    answer = engine.submit(
        EngineRequest(request_id="r", question="Go", media=tiles(1), params=GenerationParams(max_new_tokens=8))
    ).future.result(60)
    assert answer.completion_tokens == 8
    assert engine.info.dtype == "float32, fp8 language model"


@pytest.mark.parametrize("quantization", ["int4", "nf4", "4bit"])
def test_four_bits_are_refused(checkpoint: Path, start: Callable[..., LocalEngine], quantization: str) -> None:
    with pytest.raises(CheckpointError, match="4-bit"):
        start(checkpoint, quantization=quantization)


def test_int8_needs_a_gpu() -> None:
    with pytest.raises(CheckpointError, match="GPU"):
        edit_for("int8", torch.device("cpu"))


def test_the_tower_is_quantised_only_where_it_still_sees(checkpoint: Path, start: Callable[..., LocalEngine]) -> None:
    plain, quantised = start(checkpoint, dtype="float32"), start(checkpoint, dtype="float32", fp8_vision=True)
    model: Any = quantised._core.runner._model
    layers = [module for module in model.model.vision_tower.modules() if isinstance(module, Fp8Linear)]
    assert len(layers) == 2 * 6
    assert not any(isinstance(module, Fp8Linear) for module in model.model.language_model.modules())
    pixels = torch.from_numpy(tiles(2).pixels)
    with torch.inference_mode():
        found, wanted = (
            each._core.runner.vision.tower(each._core.runner.vision.normalise(pixels))[1] for each in (quantised, plain)
        )
    error = float((found - wanted).norm() / wanted.norm())
    assert 0 < error < VISION_LIMIT


def test_a_tower_that_would_stop_seeing_is_put_back() -> None:
    tower = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 8))
    values = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    before = tower(values)
    error = quantize_vision(tower, lambda: tower(values).detach(), limit=1e-4)
    assert error > 1e-4
    assert torch.equal(tower(values), before)
