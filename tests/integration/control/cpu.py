"""A cpu worker's child without any media tools, for what it does before it would need one."""

from __future__ import annotations

from typing import Any

from tests.integration.store.world import World
from workers.cpu_runtime import CpuRuntime, CpuRuntimeOptions
from workers.scratch import ScratchGate


def unequipped(world: World, *, room: bool = True, plan_turn: float = 60.0) -> CpuRuntime:
    """`room`: whether its scratch disk has some; `plan_turn` in seconds."""
    unused: Any = None
    return CpuRuntime(
        database=world.database,
        plan_tools=unused,
        paginate_tools=unused,
        prepare_tools=unused,
        export_tools=unused,
        scratch=ScratchGate(lambda: room, patience=0.0, sleep=lambda _: None),
        options=CpuRuntimeOptions(worker="w", lease_seconds=60.0, heartbeat_seconds=15.0, plan_turn=plan_turn),
        close_media=lambda: None,
    )
