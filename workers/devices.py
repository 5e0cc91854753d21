"""Which processes an engine worker needs: one a device group, each seeing its own devices only.

Kept free of torch: the launcher must not initialise CUDA before its children do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.jobs.errors import ConfigurationError
from pipelines.settings import Settings

_MEMORY_FOR_CACHE = 0.75
"""Weights may take this share of a device; the rest is cache, activations and fragmentation."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A CUDA device: its index or UUID as `CUDA_VISIBLE_DEVICES` takes it, and its memory in bytes (0: unknown)."""

    name: str
    memory: int


def visible_devices(environment: Mapping[str, str] = os.environ) -> tuple[Device, ...]:
    """The CUDA devices this process may use, asked of `nvidia-smi`; none where there is no driver."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ()
    query = [smi, "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - fixed arguments
    if answer.returncode != 0:
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
    devices = {}
    for index, uuid, mib in rows:
        devices[index] = devices[uuid] = Device(name=index, memory=int(float(mib)) * 1024 * 1024)
    allowed = environment.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return tuple(devices[row[0]] for row in rows)
    return tuple(devices[name] for name in (part.strip() for part in allowed.split(",")) if name in devices)


def device_groups(settings: Settings, devices: tuple[Device, ...]) -> tuple[tuple[str, ...], ...]:
    """Device names of each process; one empty group where the engine runs on the CPU or elsewhere.

    `auto`: one whole replica a device where the weights fit, else one process over all devices.
    """
    remote = settings.engine == "remote" or settings.model.startswith(("http://", "https://"))
    if settings.engine_device == "cpu" or settings.engine == "fake" or remote:
        return ((),)
    chosen = _chosen(settings.engine_device, devices)
    if not chosen:
        return ((),)
    together = tuple(device.name for device in chosen)
    match settings.engine_parallel:
        case "tensor" | "layers":
            return (together,)
        case "replica":
            return tuple((device.name,) for device in chosen)
        case "auto":
            weights = weights_bytes(Path(settings.model))
            fits = all(weights <= device.memory * _MEMORY_FOR_CACHE for device in chosen if device.memory)
            return tuple((device.name,) for device in chosen) if fits else (together,)


def weights_bytes(folder: Path) -> int:
    """Bytes of the checkpoint's safetensors files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _chosen(wanted: str, devices: tuple[Device, ...]) -> tuple[Device, ...]:
    if wanted in {"auto", "cuda"}:
        if wanted == "cuda" and not devices:
            raise ConfigurationError("BATCHSIGHT_ENGINE_DEVICE is cuda, but this machine shows no CUDA device")
        return devices
    if not wanted.startswith("cuda:"):
        raise ConfigurationError(f"BATCHSIGHT_ENGINE_DEVICE is {wanted!r}; use auto, cpu, cuda or cuda:0,1")
    names = [part.strip() for part in wanted.removeprefix("cuda:").split(",")]
    by_name = {device.name: device for device in devices}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ConfigurationError(
            f"BATCHSIGHT_ENGINE_DEVICE names device {', '.join(missing)}, but this machine shows "
            f"{', '.join(by_name) or 'none'}"
        )
    return tuple(by_name[name] for name in names)
