"""One builder from settings to the blob store, for the api and for the workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from pipelines.blobs.connect import blob_store, s3_options
from pipelines.blobs.local import LocalBlobStore
from pipelines.blobs.s3 import S3BlobStore
from pipelines.jobs.errors import ConfigurationError
from pipelines.settings import Settings


def test_settings_name_the_store(tmp_path: Path) -> None:
    assert isinstance(blob_store(Settings(blob_url="s3://bucket/prefix", _env_file=None)), S3BlobStore)
    local = blob_store(Settings(blob_url=f"file://{tmp_path}", _env_file=None))
    assert isinstance(local, LocalBlobStore)
    local.put("a", b"bytes")
    assert b"".join(local.stream("a")) == b"bytes"


@pytest.mark.parametrize("url", ["s3://", "gs://bucket", "file://host/folder", "file:relative", ""])
def test_any_other_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="BATCHSIGHT_BLOB_URL"):
        blob_store(Settings(blob_url=url, _env_file=None))


def test_s3_is_reached_as_the_settings_say() -> None:
    chosen = Settings(
        s3_endpoint_url="http://minio:9000",
        s3_region="eu-central-1",
        s3_access_key_id="key",
        s3_secret_access_key=SecretStr("secret"),
        _env_file=None,
    )
    options = s3_options(chosen)
    assert (options.endpoint_url, options.region) == ("http://minio:9000", "eu-central-1")
    assert (options.access_key_id, options.secret_access_key) == ("key", "secret")
    assert s3_options(Settings(s3_secret_access_key=None, _env_file=None)).secret_access_key is None
