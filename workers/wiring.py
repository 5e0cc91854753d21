"""From settings to working parts: the one place where the workers' rooms are joined."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import httpx2

from pipelines.blobs.connect import blob_store, s3_options
from pipelines.blobs.s3 import S3BlobStore, S3ObjectReader
from pipelines.control.exports.run import ExportTools
from pipelines.control.exports.target import REFUSED, ExportRules
from pipelines.engine.types import Engine
from pipelines.jobs.errors import ConfigurationError
from pipelines.jobs.models import JobSpec
from pipelines.media.cache import DiskCache
from pipelines.media.images import TILE
from pipelines.media.isolate import Decoder
from pipelines.media.limits import MediaLimits
from pipelines.media.options import Output
from pipelines.media.pack import PREPROCESSING_VERSION
from pipelines.media.sources import Fetcher
from pipelines.media.ssrf import guarded_client
from pipelines.settings import Settings
from pipelines.steps.access import AccessRules
from pipelines.steps.answers import Answers
from pipelines.steps.infer import InferTools
from pipelines.steps.inline import keep_inline
from pipelines.steps.only_new import leave_out_done
from pipelines.steps.paginate import PaginateTools
from pipelines.steps.plan import PlanTools
from pipelines.steps.plan_tools import manifests_of, uploads_of
from pipelines.steps.prepare import PrepareTools
from pipelines.steps.shelf import Loader, Shelf
from pipelines.steps.sources import SourceOpener
from pipelines.store.session import Database
from workers.cpu_runtime import CpuRuntime, CpuRuntimeOptions
from workers.gpu_runtime import GpuRuntime, GpuRuntimeOptions
from workers.scratch import ScratchGate
from workers.stream import StreamPublisher

_FETCH_THREADS = 4
"""Sources fetched and packs written side by side, in each child of a cpu worker."""


def worker_name(role: str) -> str:
    """Who holds a lease: role, host and process."""
    return f"{role}@{socket.gethostname()}:{os.getpid()}"


def media_limits(settings: Settings) -> MediaLimits:
    """Bounds on media, from settings."""
    return MediaLimits(
        image_bytes=settings.max_image_bytes,
        document_bytes=settings.max_video_bytes,
        video_bytes=settings.max_video_bytes,
        pages=settings.max_document_pages,
        decode_wall_seconds=settings.decode_wall_seconds,
        decode_memory_bytes=settings.decode_memory_bytes,
    )


def is_remote(settings: Settings) -> bool:
    """Whether answers come from an OpenAI-compatible server."""
    return settings.engine == "remote" or (
        settings.engine == "auto" and settings.model.startswith(("http://", "https://"))
    )


def tile_size(settings: Settings) -> int:
    """Side of a tile in pixels: the checkpoint's own where its folder is visible from here, else the card's 448."""
    folder = Path(settings.model) if settings.model and not is_remote(settings) else None
    if folder is None or not (folder / "config.json").is_file():
        return TILE
    from pipelines.engine.config import read_config  # noqa: PLC0415 - only where a checkpoint is at hand

    return read_config(folder).vision.image_size


def cpu_runtime(
    settings: Settings,
    *,
    make_decoder: Callable[[MediaLimits], Decoder] = Decoder,
    make_https: Callable[[], httpx2.Client] = guarded_client,
) -> CpuRuntime:
    """Everything one child of a cpu worker owns."""
    database = Database(settings.database_url, pool_size=_FETCH_THREADS, application_name=worker_name("cpu"))
    blobs = blob_store(settings)
    limits = media_limits(settings)
    objects = S3ObjectReader(s3_options(settings))

    find_upload = uploads_of(database)

    def rules(spec: JobSpec) -> AccessRules:
        buckets = settings.allowed_buckets if spec.allowed_buckets is None else spec.allowed_buckets
        return AccessRules(buckets=buckets, https=settings.https_sources)

    cache = DiskCache(
        settings.scratch_dir / "fetched", settings.fetch_cache_bytes, reserve=settings.scratch_reserve_bytes
    )
    opener = SourceOpener(
        fetcher=Fetcher(
            cache,
            limits,
            objects=objects,
            uploads=blobs,
            https=make_https() if settings.https_sources else None,
        ),
        find_upload=find_upload,
        rules=rules,
    )
    decoder = make_decoder(limits)
    threads = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="media")

    def close_media() -> None:
        threads.shutdown(wait=False, cancel_futures=True)
        decoder.close()

    return CpuRuntime(
        database=database,
        plan_tools=PlanTools(
            objects=objects,
            open_manifest=manifests_of(blobs, objects, find_upload, rules),
            find_upload=find_upload,
            rules=rules,
            max_items=settings.max_planned_items,
            keep_inline=lambda spec, medium: keep_inline(database, blobs, spec.tenant_id, medium),
            leave_out_done=lambda spec, documents: leave_out_done(database, spec, documents),
        ),
        paginate_tools=PaginateTools(fetch=opener.open, decoder=decoder),
        prepare_tools=PrepareTools(
            fetch=opener.open,
            decoder=decoder,
            shelf=Shelf(database, blobs, inline=settings.inline_pack_bytes),
            threads=threads,
            output=Output.IMAGES if is_remote(settings) else Output.TILES,
            tile=tile_size(settings),
        ),
        export_tools=ExportTools(
            own=blobs,
            open_bucket=lambda target: S3BlobStore(
                s3_options(settings), bucket=target.bucket, prefix=target.prefix, refused=REFUSED
            ),
            rules=ExportRules(buckets=settings.export_buckets, blob_url=settings.blob_url),
            scratch=settings.scratch_dir / "exports",
            gpu_second_cost=settings.gpu_second_cost,
        ),
        scratch=ScratchGate(cache.relieve),
        options=CpuRuntimeOptions(
            worker=worker_name("cpu"),
            lease_seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
        ),
        close_media=close_media,
    )


def load_model(settings: Settings) -> Engine:
    """The engine of this process. Raises a `CheckpointError` or `ConfigurationError` that says what to change."""
    if settings.engine == "fake":
        from pipelines.engine.fake import FakeEngine, FakeOptions  # noqa: PLC0415 - chosen at run time

        return FakeEngine(FakeOptions(model=settings.model_name, slots=settings.engine_slots))
    if is_remote(settings):
        return _remote(settings)
    if not settings.model:
        raise ConfigurationError("MODEL is not set; name a checkpoint folder, or the URL of a server")
    from pipelines.engine.load import load_engine  # noqa: PLC0415 - torch takes seconds, and only this role needs it
    from pipelines.engine.options import EngineOptions  # noqa: PLC0415 - with it

    return load_engine(
        Path(settings.model),
        EngineOptions(
            model_name=settings.model_name,
            device=settings.engine_device,
            dtype=settings.engine_dtype,
            quantization=settings.engine_quantization,
            parallel=settings.engine_parallel,
            max_slots=settings.engine_slots,
            threads=settings.engine_threads or os.cpu_count() or 1,
            kv_cache_bytes=settings.engine_kv_cache_bytes,
            stall_seconds=settings.engine_stall_seconds,
        ),
    )


def _remote(settings: Settings) -> Engine:
    from pipelines.engine.remote import RemoteEngine, RemoteOptions  # noqa: PLC0415 - chosen at run time

    key = settings.remote_api_key
    return RemoteEngine(
        RemoteOptions(
            url=settings.model,
            model=settings.remote_model,
            api_key=key.get_secret_value() if key else None,
            slots=settings.engine_slots,
            continues=settings.remote_continues,
        )
    )


def gpu_runtime(settings: Settings, engine: Engine) -> GpuRuntime:
    """Everything an engine worker owns beside its engine."""
    name = worker_name("gpu")
    database = Database(settings.database_url, pool_size=4, application_name=name)
    return GpuRuntime(
        database=database,
        tools=InferTools(
            engine=engine,
            packs=Loader(blob_store(settings)),
            worker=name,
            preprocessing_version=PREPROCESSING_VERSION,
            answers=_answers(settings, database),
        ),
        streams=StreamPublisher(settings.redis_url),
        options=GpuRuntimeOptions(
            worker=name,
            lease_seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
            drain_seconds=settings.drain_seconds,
        ),
    )


def _answers(settings: Settings, database: Database) -> Answers | None:
    """The cache of answers. A remote server does not tell its weights, and the fake engine is there to be asked."""
    if not settings.answer_cache or settings.engine == "fake" or is_remote(settings):
        return None
    return Answers(database, scope=f"{version('batchsight')} {settings.engine_quantization}")
