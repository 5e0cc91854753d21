"""A child whose start failed must not swallow messages: what is missing is built when a task asks for it."""

from __future__ import annotations

import pytest

from pipelines.jobs.errors import InternalError
from workers.lifecycle import _Built


def test_what_failed_at_the_start_is_built_for_the_next_task() -> None:
    tries = 0

    def make() -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError("no space left on device")
        return "runtime"

    built = _Built(make)
    with pytest.raises(OSError, match="no space"):
        built.get()
    assert built.peek() is None
    assert (built.get(), built.get(), tries) == ("runtime", "runtime", 2)


def test_without_a_way_to_build_a_task_is_told() -> None:
    built: _Built[str] = _Built()
    with pytest.raises(InternalError, match="not finished starting"):
        built.get()
    built.set("engine")
    assert built.get() == "engine"
