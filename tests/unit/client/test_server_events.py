"""Server-sent events, whatever way the bytes are cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from api.client.server_events import EventReader, ServerEvent

STREAM = (
    ": hello\n\nretry: 2500\n\nid: 1\nevent: job\ndata: {\ndata: é}\n\n"
    "data: bare\r\n\r\nid: 2\rdata\r\revent: nothing\n\nevent: end\ndata:x\nid: 3\n\ndata: not whole\n"
).encode()
EVENTS = [
    ServerEvent(name="job", data="{\né}", id="1"),
    ServerEvent(name="message", data="bare", id="1"),
    ServerEvent(name="message", data="", id="2"),
    ServerEvent(name="end", data="x", id="3"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_events_do_not_depend_on_where_chunks_end(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader()
    found = [event for start, end in itertools.pairwise(edges) for event in reader.feed(STREAM[start:end])]
    assert found == EVENTS
    assert reader.retry == 2.5


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(data: bytes) -> None:
    list(EventReader().feed(data))
