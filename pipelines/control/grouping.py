"""How picked rows become messages: several ids a message where that saves work, one where it would cost time."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence

from pipelines.store.dispatch import Picked

PAGE_RUN = 4
"""Pages of one document that stay together even when workers are idle: they share a fetch and an open decoder."""


def grouped(picked: Sequence[Picked], *, room: int, most: int) -> tuple[tuple[Picked, ...], ...]:
    """Rows of one job in one message, in the order they were picked; at most `most` a message.

    As few a message as `room` messages allow, so that idle workers share what there is; a run of pages of one document
    is not cut below `PAGE_RUN`. Suspects go alone.
    """
    size = min(most, max(1, math.ceil(len(picked) / max(1, room))))
    run = min(most, max(size, PAGE_RUN))
    groups: list[list[Picked]] = []
    open_groups: dict[uuid.UUID, list[Picked]] = {}
    for row in picked:
        if row.losses:
            groups.append([row])
            continue
        group = open_groups.get(row.job_id)
        if group is not None:
            neighbour = group[-1].doc == row.doc and group[-1].number + 1 == row.number
            if len(group) < size or (neighbour and len(group) < run):
                group.append(row)
                continue
        open_groups[row.job_id] = group = [row]
        groups.append(group)
    return tuple(tuple(group) for group in groups)
