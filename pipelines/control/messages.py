"""What the dispatcher says to workers: ids and nothing else. A message is a hint; the row it names is the truth."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class QueueName(enum.StrEnum):
    """Queues by resource; interactive jobs have queues (and engine slots) of their own."""

    CPU = "cpu"
    CPU_INTERACTIVE = "cpu.interactive"
    GPU = "gpu"
    GPU_INTERACTIVE = "gpu.interactive"


@dataclass(frozen=True, kw_only=True)
class PlanMessage:
    """List the source of a job."""

    job_id: uuid.UUID
    interactive: bool


@dataclass(frozen=True, kw_only=True)
class PaginateMessage:
    """Count the pages of documents of one job."""

    job_id: uuid.UUID
    docs: tuple[int, ...]
    interactive: bool


@dataclass(frozen=True, kw_only=True)
class PrepareMessage:
    """Prepare items of one job, pages of a document side by side. `solo`: nothing else beside it."""

    job_id: uuid.UUID
    seqs: tuple[int, ...]
    solo: bool
    interactive: bool


@dataclass(frozen=True, kw_only=True)
class InferMessage:
    """Answer one item. `solo`: nothing else beside it."""

    job_id: uuid.UUID
    seq: int
    solo: bool
    interactive: bool


@dataclass(frozen=True, kw_only=True)
class ExportMessage:
    """Go on with an export of results."""

    export_id: uuid.UUID


Message = PlanMessage | PaginateMessage | PrepareMessage | InferMessage | ExportMessage


def queue_of(message: Message) -> QueueName:
    """Where the message goes."""
    if isinstance(message, InferMessage):
        return QueueName.GPU_INTERACTIVE if message.interactive else QueueName.GPU
    if isinstance(message, ExportMessage):
        return QueueName.CPU
    return QueueName.CPU_INTERACTIVE if message.interactive else QueueName.CPU


@dataclass(frozen=True, kw_only=True)
class Depths:
    """Messages that wait, by queue. `forgotten`: the broker has lost its memory since it was last marked."""

    waiting: Mapping[QueueName, int]
    forgotten: bool


class Broker(Protocol):
    """The port to the queues (`workers.publish.Publisher`). Every method raises `BrokerUnavailable`."""

    def depths(self) -> Depths:
        """How many messages wait in each queue."""

    def mark_memory(self) -> None:
        """From now on a broker that forgot everything can be told from one that is merely empty."""

    def publish(self, messages: Sequence[Message]) -> None:
        """Send all, in order. After an error some may have been sent."""
