from __future__ import annotations

import uuid

import pytest

from pipelines.store.session import Database
from tests.integration.store.world import World


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


@pytest.fixture
def tenant(world: World) -> uuid.UUID:
    return world.tenant()
