from __future__ import annotations

import pytest

from pipelines.store.session import Database
from tests.integration.store.world import World


@pytest.fixture
def world(database: Database) -> World:
    return World(database)
