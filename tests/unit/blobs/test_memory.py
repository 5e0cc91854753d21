"""The memory store meets the contract."""

from __future__ import annotations

import pytest

from pipelines.blobs.memory import MemoryBlobStore
from tests.contracts.blob_store_contract import BlobStoreContract


class TestMemoryBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self) -> MemoryBlobStore:
        return MemoryBlobStore()
