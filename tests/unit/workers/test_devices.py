from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.jobs.errors import ConfigurationError
from pipelines.settings import Settings
from workers.devices import Device, device_groups

GIB = 1024**3
TWO = (Device(name="0", memory=80 * GIB), Device(name="1", memory=80 * GIB))


def settings(tmp_path: Path, **changes: object) -> Settings:
    return Settings.model_validate({"model": str(tmp_path), **changes})


def weights(tmp_path: Path, size: int) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(size)


def test_without_a_gpu_there_is_one_process_and_no_device(tmp_path: Path) -> None:
    assert device_groups(settings(tmp_path), ()) == ((),)


def test_a_model_that_fits_gets_one_replica_a_gpu(tmp_path: Path) -> None:
    weights(tmp_path, 48 * GIB)
    assert device_groups(settings(tmp_path), TWO) == (("0",), ("1",))


def test_a_model_that_does_not_fit_is_split_over_all(tmp_path: Path) -> None:
    weights(tmp_path, 70 * GIB)
    assert device_groups(settings(tmp_path), TWO) == (("0", "1"),)


@pytest.mark.parametrize("parallel", ["tensor", "layers"])
def test_a_split_that_is_asked_for_takes_all_devices(tmp_path: Path, parallel: str) -> None:
    assert device_groups(settings(tmp_path, engine_parallel=parallel), TWO) == (("0", "1"),)


def test_named_devices_are_used_in_their_order(tmp_path: Path) -> None:
    chosen = settings(tmp_path, engine_device="cuda:1,0", engine_parallel="replica")
    assert device_groups(chosen, TWO) == (("1",), ("0",))


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "cuda:"])
def test_a_device_that_is_not_there_is_refused_with_a_sentence(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigurationError, match="BATCHSIGHT_ENGINE_DEVICE"):
        device_groups(settings(tmp_path, engine_device=device), TWO)


def test_cuda_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        device_groups(settings(tmp_path, engine_device="cuda"), ())


@pytest.mark.parametrize("changes", [{"engine_device": "cpu"}, {"engine": "fake"}, {"model": "http://server:23333"}])
def test_cpu_fake_and_remote_engines_take_no_device(tmp_path: Path, changes: dict[str, object]) -> None:
    assert device_groups(settings(tmp_path, **changes), TWO) == ((),)
