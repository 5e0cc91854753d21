from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from pipelines.control.grouping import PAGE_RUN, grouped
from pipelines.store.dispatch import Picked

ONE, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


def row(number: int, *, job: uuid.UUID = ONE, doc: int | None = None, losses: int = 0) -> Picked:
    return Picked(job_id=job, number=number, doc=number if doc is None else doc, losses=losses)


def sizes(rows: list[Picked], room: int, most: int = 8) -> list[int]:
    return [len(group) for group in grouped(rows, room=room, most=most)]


def test_idle_workers_share_what_there_is() -> None:
    assert sizes([row(n) for n in range(6)], room=64) == [1] * 6


def test_a_backlog_travels_in_full_messages() -> None:
    assert sizes([row(n) for n in range(40)], room=5) == [8] * 5
    assert sizes([row(n) for n in range(20)], room=10) == [2] * 10


def test_pages_of_one_document_stay_together_even_when_workers_are_idle() -> None:
    pages = [row(n, doc=0) for n in range(10)]
    assert sizes(pages, room=64) == [PAGE_RUN, PAGE_RUN, 2]


def test_a_suspect_travels_alone() -> None:
    rows = [row(0), row(1, losses=1), row(2), row(3, losses=2)]
    found = grouped(rows, room=1, most=8)
    assert [[each.number for each in group] for group in found] == [[0, 2], [1], [3]]


@given(
    st.lists(st.tuples(st.sampled_from([ONE, OTHER]), st.integers(0, 3), st.integers(0, 2)), max_size=60),
    st.integers(1, 40),
    st.integers(1, 16),
)
def test_every_row_is_sent_once_with_rows_of_its_own_job(
    drawn: list[tuple[uuid.UUID, int, int]], room: int, most: int
) -> None:
    rows = [row(n, job=job, doc=doc, losses=losses) for n, (job, doc, losses) in enumerate(drawn)]
    groups = grouped(rows, room=room, most=most)
    assert sorted(each.number for group in groups for each in group) == list(range(len(rows)))
    for group in groups:
        assert len({each.job_id for each in group}) == 1
        assert len(group) <= most
        assert [each.number for each in group] == sorted(each.number for each in group)
        assert len(group) == 1 or not any(each.losses for each in group)
