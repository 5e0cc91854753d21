from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipelines.store import leader
from pipelines.store.leader import Epoch
from pipelines.store.session import Database
from tests.integration.control.office import TERMS, Office
from tests.integration.control.receiver import Receiver, receiving
from tests.integration.store.world import World


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def epoch(world: World) -> Epoch:
    with world.database.begin() as conn:
        found = leader.acquire(conn, "test", TERMS)
    assert found is not None
    return found


@pytest.fixture
def open_office(world: World, epoch: Epoch) -> Iterator[Callable[..., Office]]:
    made: list[Office] = []

    def opened(**options: Any) -> Office:
        made.append(Office(world, epoch, **options))
        return made[-1]

    yield opened
    for office in made:
        office.close()


@pytest.fixture
def office(open_office: Callable[..., Office]) -> Office:
    return open_office()
