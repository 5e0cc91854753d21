"""How a worker process lives: build when it starts, drain when it is told to stop, exit when its engine dies.

The cpu worker builds one runtime in each forked child. The engine worker loads its model before it takes a message
(`worker_init`: in a thread pool `worker_process_init` never fires), and a load that fails ends the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import structlog
from celery import Celery, signals

from pipelines.engine.types import Engine
from pipelines.jobs.errors import BatchsightError, InternalError
from pipelines.logs import configure_logs
from pipelines.media.isolate import Decoder
from pipelines.media.limits import MediaLimits
from pipelines.settings import Settings
from workers.app import CPU, CPU_INTERACTIVE, GPU, GPU_INTERACTIVE, create_app
from workers.gpu_runtime import GpuRuntime, run_on_engine_death
from workers.health import HealthServer
from workers.heap import settle_heap
from workers.hints import CancelHints
from workers.registry import Registration
from workers.reserved import ReservedSlots
from workers.scratch import measure
from workers.tasks import answer, register_cpu, register_gpu
from workers.wiring import cpu_runtime, gpu_runtime, load_model, worker_name

_log = structlog.get_logger(__name__)
T = TypeVar("T")

EXIT_ENGINE_DEAD = 70
"""Exit status of an engine worker whose engine can make no more progress (EX_SOFTWARE of sysexits.h)."""


class _Built(Generic[T]):
    """What a signal built, for the tasks to use.

    `again` builds what is missing when a task asks: Celery only logs what its signals raise, and a child whose start
    failed (a full disk, say) would otherwise swallow messages for the rest of its life.
    """

    def __init__(self, again: Callable[[], T] | None = None) -> None:
        self._value: T | None = None
        self._again = again

    def set(self, value: T | None) -> None:
        self._value = value

    def peek(self) -> T | None:
        return self._value

    def get(self) -> T:
        if self._value is None:
            if self._again is None:
                raise InternalError("the worker has not finished starting")
            self._value = self._again()
        return self._value


def run_cpu_worker(
    settings: Settings, *, processes: int, make_decoder: Callable[[MediaLimits], Decoder] = Decoder
) -> int:
    """Run the cpu worker until it is told to stop. `make_decoder` is called once in each child."""
    configure_logs(settings, role="cpu")
    app = create_app(settings, "cpu")
    built = _Built(lambda: cpu_runtime(settings, make_decoder=make_decoder))
    register_cpu(app, built.get)
    name = worker_name("cpu")
    registration = Registration(
        settings.database_url,
        worker=name,
        role="cpu",
        slots=processes,
        measure=lambda: measure(settings.scratch_dir),
    )

    @signals.worker_process_init.connect(weak=False)
    def build(**_: Any) -> None:
        built.get()
        settle_heap()

    @signals.worker_process_shutdown.connect(weak=False)
    def close(**_: Any) -> None:
        if (runtime := built.peek()) is not None:
            runtime.close()

    @signals.worker_ready.connect(weak=False)
    def ready(**_: Any) -> None:
        # After the children are forked: a thread before a fork would be lost in them, and its locks would not be.
        registration.start()
        if settings.health_port:
            HealthServer(settings.health_port, lambda: True, host=settings.health_host)
        _log.info("cpu_worker_ready", processes=processes)

    @signals.worker_shutting_down.connect(weak=False)
    def stopping(**_: Any) -> None:
        registration.drain()

    code = _serve(app, "prefork", processes, [CPU_INTERACTIVE, CPU], name=name)
    registration.close()
    return code


def run_gpu_worker(settings: Settings, *, load: Callable[[Settings], Engine] = load_model) -> int:
    """Run the engine worker until it is told to stop, or its engine dies. `load` makes the engine of the process."""
    configure_logs(settings, role="gpu")
    app = create_app(settings, "gpu")
    built: _Built[GpuRuntime] = _Built()
    register_gpu(app, built.get)
    worker = _GpuWorker(settings, built, load)
    signals.worker_init.connect(worker.build, weak=False)
    signals.worker_ready.connect(worker.ready, weak=False)
    signals.worker_shutting_down.connect(worker.stopping, weak=False)
    name = worker_name("gpu")
    shared = settings.engine_slots - reserved_slots(settings)
    code = _serve(app, "threads", shared, [GPU_INTERACTIVE, GPU], name=name)
    worker.close()
    return code


def reserved_slots(settings: Settings) -> int:
    """Slots for interactive items alone; one at least is left for everything."""
    return min(settings.interactive_slots, settings.engine_slots - 1)


class _GpuWorker:
    """The signal handlers of an engine worker, and what they share."""

    def __init__(self, settings: Settings, built: _Built[GpuRuntime], load: Callable[[Settings], Engine]) -> None:
        self._settings = settings
        self._load = load
        self._built = built
        self._engine: Engine | None = None
        self._registration: Registration | None = None
        self._hints: CancelHints | None = None
        self._reserved: ReservedSlots | None = None

    def build(self, **_: Any) -> None:
        """Load the model; a failure ends the process."""
        settings = self._settings
        try:
            engine = self._load(settings)
        except BatchsightError as error:
            _log.exception("model_load_failed", model=settings.model, code=error.code, message=error.message)
            raise SystemExit(1) from error
        runtime = gpu_runtime(settings, engine)
        self._engine = engine
        self._built.set(runtime)
        self._registration = Registration(
            settings.database_url, worker=worker_name("gpu"), role="gpu", slots=settings.engine_slots, engine=engine
        )
        self._registration.start()
        self._hints = CancelHints(settings.redis_url, runtime.leases.check_now)
        run_on_engine_death(engine.healthy, self._engine_died)
        if settings.health_port:
            HealthServer(settings.health_port, engine.healthy, host=settings.health_host)
        settle_heap()
        _log.info("engine_ready", model=engine.info.model, device=engine.info.device, attention=engine.info.attention)

    def ready(self, **_: Any) -> None:
        """Messages are taken from now on."""
        self._reserved = ReservedSlots(
            self._settings.redis_url,
            partial(answer, self._built.get),
            slots=reserved_slots(self._settings),
        )
        _log.info("gpu_worker_ready", slots=self._settings.engine_slots)

    def stopping(self, **_: Any) -> None:
        """SIGTERM: claim nothing more; what still runs after the grace time is given back."""
        if self._reserved is not None:
            self._reserved.stop()
        self._built.get().drain()
        if self._registration is not None:
            self._registration.drain()

    def close(self) -> None:
        """After the last task has returned."""
        runtime = self._built.get()
        if self._reserved is not None:
            self._reserved.close(self._settings.drain_seconds + 5)
        runtime.close()
        if self._hints is not None:
            self._hints.close()
        if self._engine is not None:
            self._engine.close()
        if self._registration is not None:
            self._registration.close()

    def _engine_died(self) -> None:
        runtime = self._built.get()
        if runtime.draining:
            return  # it was closed on purpose
        runtime.give_back()
        # The tasks' threads write "released" through the committer; then nothing more can be saved.
        threading.Event().wait(2.0)
        runtime.close()
        _log.error("engine_worker_exits", status=EXIT_ENGINE_DEAD)
        os._exit(EXIT_ENGINE_DEAD)


def _serve(app: Celery, pool: str, concurrency: int, queues: list[str], *, name: str) -> int:
    worker = app.Worker(
        pool=pool,
        concurrency=concurrency,
        queues=queues,
        hostname=name,
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
