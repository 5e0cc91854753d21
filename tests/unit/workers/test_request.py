"""Acknowledgements: the loop is told of each, and a lost one ends the connection."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu.asynchronous.hub import Hub

from workers.request import AcknowledgedRequest


class Message:
    """A message whose acknowledgement succeeds, or does not."""

    def __init__(self, error: Exception | None = None) -> None:
        self.acks = 0
        self._error = error

    def ack(self) -> None:
        self.acks += 1
        if self._error is not None:
            raise self._error


def request(message: Message) -> Any:
    """A request of this message, without the rest of Celery's worker."""
    made: Any = AcknowledgedRequest.__new__(AcknowledgedRequest)
    made._message, made._connection_errors, made.acknowledged = message, (ConnectionError,), False
    return made


class Loop:
    """Notes what it is asked to call."""

    def __init__(self) -> None:
        self.called: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    def call_soon(self, callback: Callable[..., None], *arguments: object) -> None:
        self.called.append((callback, arguments))


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    found = Loop()
    monkeypatch.setattr(AcknowledgedRequest, "loop", found)
    return found


def test_the_loop_is_called_once_for_an_acknowledged_message(loop: Loop) -> None:
    made = request(Message())
    made.acknowledge()
    made.acknowledge()
    assert made.message.acks == 1
    ((callback, arguments),) = loop.called
    callback(*arguments)


def test_a_lost_acknowledgement_is_raised_in_the_loop(loop: Loop) -> None:
    lost = ConnectionError("Redis is gone")
    made = request(Message(lost))
    made.acknowledge()
    assert made.acknowledged
    ((callback, arguments),) = loop.called
    with pytest.raises(ConnectionError) as caught:
        callback(*arguments)
    assert caught.value is lost


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, threading.Event]]:
    """A real loop that sleeps until it is woken, and an event that is set each time before it sleeps."""
    hub, looked = Hub(), threading.Event()
    silent, end = os.pipe()  # with nothing to read from, kombu's loop does not poll
    hub.add_reader(silent, lambda: None)
    poll = hub.poller.poll
    monkeypatch.setattr(hub.poller, "poll", lambda _: poll(3_600))  # kombu itself looks up once a second
    hub.on_tick.add(looked.set)  # type: ignore[attr-defined]  # it is a set; its stubs say a list
    monkeypatch.setattr(AcknowledgedRequest, "loop", hub)
    thread = threading.Thread(target=hub.run_forever, daemon=True)
    thread.start()
    yield hub, looked
    hub.stop()
    thread.join(10)
    assert not thread.is_alive()
    hub.close()
    os.close(silent)
    os.close(end)


def test_an_acknowledgement_from_another_thread_wakes_a_sleeping_loop(asleep: tuple[Hub, threading.Event]) -> None:
    _, looked = asleep
    assert looked.wait(10)
    looked.clear()
    request(Message()).acknowledge()
    assert looked.wait(10), "the loop looks for messages again"
