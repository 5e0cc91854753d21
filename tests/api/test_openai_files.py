"""Files with the unmodified `openai` package: pages, order, purpose, and an expiry that really deletes."""

from __future__ import annotations

import openai
import pytest
from sqlalchemy import text

from pipelines.control.retention import Retention
from pipelines.jobs.errors import MediaNotFound
from pipelines.store import leader
from pipelines.store.leader import Terms
from tests.api.chats import sdk_of
from tests.api.conftest import Served


def test_files_are_listed_by_page_purpose_and_order_and_expire(api: Served) -> None:
    sdk = sdk_of(api)
    made = [sdk.files.create(file=(f"{n}.jsonl", bytes([n])), purpose="batch").id for n in range(4)]
    other = sdk.files.create(
        file=("a.png", b"a"), purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert other.expires_at == pytest.approx(other.created_at + 3600, abs=2)
    assert [file.id for file in sdk.files.list(purpose="batch", order="asc", limit=3)] == made
    assert sdk.files.list(limit=2).has_more is True
    assert [file.id for file in sdk.files.list(after=made[2], order="asc", purpose="batch")] == made[3:]
    assert [file.id for file in sdk.files.list(after=made[2])] == made[:2][::-1]
    with pytest.raises(openai.UnprocessableEntityError):
        sdk.files.list(limit=10_001)
    with api.database.begin() as conn:
        key = conn.execute(
            text("UPDATE files SET expires_at = now() WHERE purpose = 'vision' RETURNING blob_key")
        ).scalar_one()
    for call in (sdk.files.retrieve, sdk.files.content):
        with pytest.raises(openai.NotFoundError):
            call(other.id)
    assert other.id not in [file.id for file in sdk.files.list()]
    blobs = api.app.state.services.blobs
    assert blobs.stat(key).size == 1
    with api.database.begin() as conn:
        epoch = leader.acquire(conn, "test", Terms(lease=60, grace=60, gap=60))
    assert epoch is not None
    Retention(api.database, delete_blob=blobs.delete, list_blobs=blobs.list, days=30).run(epoch)
    with pytest.raises(MediaNotFound):
        blobs.stat(key)
    with api.client() as client:
        assert client.usage().stored_bytes == 4
    sdk.close()
