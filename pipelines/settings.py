"""Typed settings, read only at the edges (`api.lifespan`, `workers.lifecycle`, `workers.dispatcher`, the command line).

Every field is an environment variable: the name in capitals behind `BATCHSIGHT_`, or, for the addresses that everybody
knows, the plain name too (`DATABASE_URL`, `REDIS_URL`, `S3_ENDPOINT_URL`, `MODEL`, the usual `AWS_*`). A `.env` file
in the working directory is read after the environment. README holds the same table; a test keeps both alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _alias(name: str) -> AliasChoices:
    return AliasChoices(f"BATCHSIGHT_{name}", name)


KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB


class Settings(BaseSettings):
    """All settings with their defaults. Sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHSIGHT_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    # Addresses
    database_url: str = Field(
        "postgresql://localhost/batchsight",
        validation_alias=_alias("DATABASE_URL"),
        description="PostgreSQL 15 or newer",
    )
    redis_url: str = Field(
        "redis://localhost:6379/0", validation_alias=_alias("REDIS_URL"), description="Redis 6.2 or newer"
    )
    s3_endpoint_url: str | None = Field(
        None, validation_alias=_alias("S3_ENDPOINT_URL"), description="MinIO or another S3; empty for AWS"
    )
    s3_public_endpoint_url: str | None = Field(
        None, description="the endpoint that clients reach, for presigned URLs; empty: the same"
    )
    s3_region: str = Field("us-east-1", validation_alias=_alias("AWS_REGION"), description="S3 region")
    s3_access_key_id: str | None = Field(
        None, validation_alias=_alias("AWS_ACCESS_KEY_ID"), description="S3 access key; empty: boto3's own chain"
    )
    s3_secret_access_key: SecretStr | None = Field(
        None, validation_alias=_alias("AWS_SECRET_ACCESS_KEY"), description="S3 secret key"
    )
    blob_url: str = Field(
        "s3://batchsight",
        description="where uploads, tile packs and exports lie: `s3://bucket/prefix` or `file:///folder`",
    )

    # The engine
    model: str = Field(
        "",
        validation_alias=_alias("MODEL"),
        description="checkpoint folder (original or native layout), or `http(s)://` of a server",
    )
    model_name: str = Field("internvl-chat-v1-5", description="the name that results and `/v1/models` show")
    engine: Literal["auto", "local", "remote", "fake"] = Field(
        "auto",
        description="auto: remote for a URL in MODEL, else local; fake: deterministic, for tests of the pipeline",
    )
    engine_device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:0,1` …")
    engine_dtype: Literal["auto", "bfloat16", "float16", "float32", "float64"] = Field(
        "auto", description="weights and arithmetic"
    )
    engine_quantization: Literal["none", "int8", "fp8"] = Field("none", description="of the language model alone")
    engine_parallel: Literal["auto", "replica", "tensor", "layers"] = Field(
        "auto", description="how several devices are used"
    )
    engine_slots: int = Field(16, ge=1, le=1024, description="items in flight in one engine worker")
    interactive_slots: int = Field(
        1, ge=0, description="of an engine's slots, so many serve interactive items alone (all but one at most)"
    )
    engine_threads: int = Field(0, ge=0, description="CPU threads of the engine; 0: all cores")
    engine_kv_cache_bytes: int = Field(0, ge=0, description="size of the paged KV cache; 0: from free memory")
    engine_stall_seconds: float = Field(120, gt=0, description="no step for so long while work waits: the worker exits")
    answer_cache: bool = Field(
        default=True, description="answer an equal item of the same tenant from its earlier result (local engines)"
    )
    remote_api_key: SecretStr | None = Field(None, description="bearer key for a remote engine")
    remote_model: str | None = Field(None, description="model id at the remote engine; empty: its first")
    remote_continues: bool = Field(
        default=False,
        description="the remote engine goes on with a last assistant message (LMDeploy and vLLM do)",
    )

    # Sources
    allowed_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="buckets or `bucket/prefix` that tenants without a list of their own may read; comma separated",
    )
    export_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="buckets or `bucket/prefix` that tenants without a list of their own may export to",
    )
    https_sources: bool = Field(default=False, description="accept https URLs as media")
    scratch_dir: Path = Field(Path("/tmp/batchsight"), description="decoder scratch and the fetch cache")  # noqa: S108 - a default; each deployment names its own
    fetch_cache_bytes: int = Field(20 * GiB, description="bound of the fetch cache on each machine")
    scratch_reserve_bytes: int = Field(
        256 * MiB,
        ge=0,
        description="free bytes of the scratch disk below which the fetch cache gives way, then nothing is claimed",
    )

    # Limits (RELIABILITY: hostile input)
    max_image_bytes: int = Field(50 * MiB, description="one image or page")
    max_video_bytes: int = Field(2 * GiB, description="one video")
    max_body_bytes: int = Field(16 * MiB, description="JSON request body")
    max_upload_bytes: int = Field(2 * GiB, description="one uploaded file")
    max_batch_bytes: int = Field(200_000_000, description="one OpenAI batch file or manifest upload")
    max_items_per_request: int = Field(100_000, description="inline media in one request")
    max_planned_items: int = Field(1_000_000, description="items planned from a prefix or a manifest")
    max_document_pages: int = Field(5_000, description="pages of one PDF or TIFF")
    decode_memory_bytes: int = Field(1_400 * MiB, description="address space of one decoder child")
    decode_wall_seconds: float = Field(120, description="wall time of one decoder call")

    # Reliability
    lease_seconds: float = Field(
        60, gt=0, description="a claimed item belongs to its worker for so long after each heartbeat"
    )
    heartbeat_seconds: float = Field(15, gt=0, description="between heartbeats")
    sweep_seconds: float = Field(5, gt=0, description="between sweeps of the dispatcher")
    leader_lease_seconds: float = Field(5, gt=0, description="the dispatcher's own lease")
    redispatch_seconds: float = Field(60, gt=0, description="a published but unclaimed item is published again")
    dispatch_window: int = Field(64, ge=1, description="messages that may lie in each queue")
    ready_items: int = Field(512, ge=1, description="prepared items that may wait for an engine")
    ready_bytes: int = Field(20 * GiB, ge=1, description="bytes of tile packs that may wait for an engine")
    inline_pack_bytes: int = Field(
        32 * KiB,
        ge=0,
        le=MiB,
        description="packs of at most so many bytes lie in Postgres, others as blobs",
    )
    cpu_workers: int = Field(0, ge=0, description="processes of one cpu worker; 0: all cores")
    drain_seconds: float = Field(30, ge=0, description="grace at SIGTERM before running items are given back")
    stuck_job_seconds: float = Field(
        900, gt=0, description="claimable work without any progress for so long: the job is reported as stuck"
    )
    max_schedules: int = Field(100, ge=0, description="schedules of one tenant")
    retention_days: int = Field(30, ge=1, description="results, items, uploads and webhooks' log are kept for so long")

    # Webhooks
    webhook_concurrency: int = Field(16, ge=1, le=256, description="webhooks that are sent at once")
    webhook_endpoints_per_tenant: int = Field(20, ge=0, description="webhook endpoints of one tenant")
    webhook_plain_http: bool = Field(default=False, description="webhooks may go to http addresses (for development)")
    webhook_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="networks that webhooks may reach though they are not public, such as `127.0.0.0/8` "
        "(for development); comma separated",
    )

    # The api
    api_host: str = Field("127.0.0.1", description="listen address")
    api_port: int = Field(8080, ge=0, le=65535, description="listen port")
    api_key_pepper: SecretStr = Field(
        SecretStr(""), description="server secret under the hashes of API keys (at least 32 characters); required"
    )
    public_url: str = Field("", description="the api's address as clients see it")
    rate_limit_per_minute: int = Field(6_000, ge=1, description="requests a tenant and minute")
    idempotency_hours: int = Field(24, ge=1, description="how long an idempotency key is remembered")
    gpu_second_cost: float = Field(0.0, ge=0, description="price of a GPU second, for `usage.cost`")

    log_format: Literal["json", "console"] = Field("json", description="structured logs")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    otel_endpoint: str | None = Field(None, description="OTLP collector; empty: tracing off")
    health_host: str = Field(
        "127.0.0.1", description="listen address of a worker's health and metrics endpoint; in a container `0.0.0.0`"
    )
    health_port: int = Field(0, ge=0, le=65535, description="port of a worker's health and metrics endpoint; 0: off")

    @field_validator("allowed_buckets", "export_buckets", "webhook_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
