"""`python -m workers.dispatcher`: one leader moves work, a standby waits beside it.

Seven threads, each a loop over short transactions: leadership (renew or try), wake-ups (LISTEN), dispatch, upkeep
(sweeps, snapshots, endings), schedules, webhooks, retention, watch (what alarms are raised on). Only the leader works;
every write checks its epoch. SIGTERM ends the loops, gives the lead back, and exits 0.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import psycopg
import structlog
from prometheus_client import Counter, Gauge

from pipelines.blobs.connect import blob_store
from pipelines.control.dispatch import STAGES, Dispatched, Dispatcher, DispatchOptions
from pipelines.control.firing import Scheduler
from pipelines.control.leadership import Leadership, terms
from pipelines.control.pressure import Shelf
from pipelines.control.retention import Retention
from pipelines.control.sweep import Upkeep
from pipelines.jobs.errors import BatchsightError, ServiceUnavailable
from pipelines.logs import configure_logs
from pipelines.settings import Settings
from pipelines.steps.submit import submit_rules
from pipelines.store.leader import Epoch, LeaderLost
from pipelines.store.session import Database
from pipelines.store.values import DISPATCH_CHANNEL, Wake
from workers.health import HealthServer
from workers.heap import settle_heap
from workers.publish import Publisher
from workers.wakeups import WakeUps
from workers.watch import Watch
from workers.webhooks import Webhooks

_log = structlog.get_logger(__name__)

SHORTEST = 0.010
"""Seconds between ticks under load."""
BACKLOG = 0.020
"""Until the next look at full queues while more waits."""
HELD = 0.100
"""Until the next look while back-pressure or the suspect lane holds work back."""
IDLE = 1.0
"""Until the next look of a dispatcher that nobody wakes: retries become due."""
SNAPSHOT = 1.0
RETENTION = 600.0
WATCH = 10.0
_PAUSE = 0.5  # after a failure
_STANDBY = 0.2  # between looks of a standby whether it leads by now

_published = Counter("batchsight_dispatched_messages_total", "Messages sent to the queues")
_requeued = Counter("batchsight_requeued_rows_total", "Rows whose message was lost or came to nothing")
_lost = Counter("batchsight_lost_leases_total", "Leases that expired", ["of"])
_ended = Counter("batchsight_ended_items_total", "Items that ended, as the snapshots saw it")
_failed = Counter("batchsight_failed_items_total", "Items that failed, as the snapshots saw it", ["code"])
_runs = Counter("batchsight_schedule_runs_total", "Times at which schedules were due", ["state"])
_depth = Gauge("batchsight_queue_messages", "Messages that wait in a queue", ["queue"])
_leading = Gauge("batchsight_leading", "1 in the dispatcher that leads")
_contact = Gauge("batchsight_leader_contact_seconds", "Since the database last answered")


class Process:
    """The dispatcher's threads and what they share."""

    def __init__(self, settings: Settings) -> None:
        name = f"dispatcher@{socket.gethostname()}:{os.getpid()}"
        self._settings = settings
        self._stop = threading.Event()
        self._work, self._endings = WakeUps(), WakeUps()
        self._databases = [
            Database(settings.database_url, pool_size=1, application_name=f"{name} {role}")
            for role in ("leader", "dispatch", "upkeep", "schedules", "retention", "watch")
        ]
        leads, dispatches, keeps, fires, retains, watches = self._databases
        self._broker = Publisher(settings.redis_url, window=settings.dispatch_window)
        self._leadership = Leadership(
            leads, name, terms(leader_lease=settings.leader_lease_seconds, item_lease=settings.lease_seconds)
        )
        shelf = Shelf(items=settings.ready_items, bytes=settings.ready_bytes)
        self._dispatcher = Dispatcher(
            dispatches, self._broker, DispatchOptions(window=settings.dispatch_window, shelf=shelf)
        )
        self._upkeep = Upkeep(keeps, redispatch_after=settings.redispatch_seconds)
        self._scheduler = Scheduler(fires, submit_rules(settings))
        blobs = blob_store(settings)
        self._retention = Retention(
            retains, delete_blob=blobs.delete, list_blobs=blobs.list, days=settings.retention_days
        )
        self._watch = Watch(watches, self._broker, stuck_after=settings.stuck_job_seconds)
        self._webhooks = Webhooks(settings, name)
        self._open_listener = _listener(dispatches.url, name)

    def run(self) -> int:
        """Work until SIGTERM or SIGINT."""
        signal.signal(signal.SIGTERM, self._signalled)
        signal.signal(signal.SIGINT, self._signalled)
        health = None
        if self._settings.health_port:
            health = HealthServer(self._settings.health_port, self.healthy, host=self._settings.health_host)
        loops: dict[str, Callable[[], None]] = {
            "leadership": self._lead,
            "wake-ups": self._listen,
            "dispatch": self._dispatch,
            "upkeep": self._keep_up,
            "schedules": self._fire,
            "webhooks": self._notify,
            "retention": self._retain,
            "watch": self._look,
        }
        threads = [
            threading.Thread(target=self._forever, args=(name, loop), name=name, daemon=True)
            for name, loop in loops.items()
        ]
        for thread in threads:
            thread.start()
        settle_heap()
        _log.info("dispatcher_ready")
        while not self._stop.wait(1.0):
            _contact.set(time.monotonic() - self._leadership.contact)
        self._work.close()
        self._endings.close()
        self._webhooks.wake()
        for thread in threads:
            thread.join(10)
        self._leadership.resign()
        self._webhooks.close()
        self._broker.close()
        for database in self._databases:
            database.close()
        if health is not None:
            health.close()
        _log.info("dispatcher_stopped")
        return 0

    def healthy(self) -> bool:
        """False once the database has not answered for half a minute."""
        return time.monotonic() - self._leadership.contact < 30.0

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stop.set()

    def _forever(self, name: str, loop: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                loop()
            except LeaderLost:
                self._leadership.lost()
            except (ServiceUnavailable, psycopg.OperationalError) as error:
                _log.warning("dispatcher_waits_for_server", loop=name, error=str(error))
                self._stop.wait(_PAUSE)
            except BatchsightError as error:
                _log.warning("dispatcher_loop_failed", loop=name, code=error.code, error=error.message)
                self._stop.wait(_PAUSE)
            except Exception:  # noqa: BLE001 - a defect in one loop must not end the others; it is logged each time
                _log.exception("dispatcher_loop_raised", loop=name)
                self._stop.wait(_PAUSE)

    def _lead(self) -> None:
        led = self._leadership.epoch() is not None
        leads = self._leadership.step()
        _leading.set(leads)
        if leads and not led:
            self._work.add(*STAGES)
            self._endings.add(Wake.ENDED, Wake.CANCEL)
        self._stop.wait(self._leadership.interval if leads else min(1.0, self._leadership.interval))

    def _listen(self) -> None:
        with self._open_listener() as conn:
            conn.execute(f"LISTEN {DISPATCH_CHANNEL}")
            self._work.add(*STAGES)  # whatever was said while nobody listened
            while not self._stop.is_set():
                for note in conn.notifies(timeout=1.0, stop_after=1):
                    self._woken(note.payload)

    def _woken(self, payload: str) -> None:
        reason = Wake(payload)
        if reason in STAGES:
            self._work.add(reason)
        elif reason is Wake.WEBHOOK:
            self._webhooks.wake()
        else:
            self._endings.add(reason)

    def _dispatch(self) -> None:
        """Ticks until leadership is lost; raises what a tick raises."""
        due = STAGES
        pause = IDLE
        while not self._stop.is_set():
            reasons = self._work.take(pause) & STAGES
            epoch = self._leadership.epoch()
            if epoch is None:
                due, pause = STAGES, IDLE
                self._stop.wait(_STANDBY)
                continue
            began = time.monotonic()
            done = self._dispatcher.tick(epoch, reasons | due or STAGES)
            _published.inc(done.published)
            _requeued.inc(done.requeued)
            for queue, count in done.waiting.items():
                _depth.labels(str(queue)).set(count)
            due, pause = done.backlog | done.held, _pause_after(done)
            self._stop.wait(max(0.0, began + SHORTEST - time.monotonic()))

    def _keep_up(self) -> None:
        """Endings as they are announced, snapshots every second, sweeps at their interval."""
        next_snapshot = next_sweep = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            reasons = self._endings.take(max(0.0, min(next_snapshot, next_sweep) - now))
            epoch = self._leadership.epoch()
            if epoch is None:
                self._stop.wait(_STANDBY)
                continue
            if Wake.CANCEL in reasons:
                self._upkeep.cancel(epoch)
            if Wake.ENDED in reasons:
                self._upkeep.end_finished(epoch, touched_only=True)
            if time.monotonic() >= next_snapshot:
                self._snapshot(epoch)
                next_snapshot = time.monotonic() + SNAPSHOT
            if time.monotonic() >= next_sweep:
                self._sweep(epoch)
                next_sweep = time.monotonic() + self._settings.sweep_seconds
            self._stop.wait(BACKLOG)  # endings come in bursts: one look for many

    def _snapshot(self, epoch: Epoch) -> None:
        folded = self._upkeep.fold(epoch)
        _ended.inc(folded.ended)
        for code, count in folded.failed.items():
            _failed.labels(code).inc(count)
        self._dispatcher.pace.note(folded.succeeded, time.monotonic())

    def _sweep(self, epoch: Epoch) -> None:
        swept = self._upkeep.sweep(epoch)
        for of, count in (
            ("items", swept.items),
            ("documents", swept.documents),
            ("plans", swept.plans),
            ("exports", swept.exports),
        ):
            _lost.labels(of).inc(count)
        _requeued.inc(swept.requeued)
        # Retries become due, and nobody says so; a stage that is held would keep the others from being looked at.
        self._work.add(*STAGES)

    def _fire(self) -> None:
        """Its own thread: writing down what a large run has done takes longer than a snapshot may wait."""
        epoch = self._leadership.epoch()
        if epoch is not None:
            fired = self._scheduler.fire(epoch)
            for state, count in fired.runs.items():
                _runs.labels(str(state)).inc(count)
            for job_id in fired.cancelled:
                self._broker.cancel(job_id)
            if self._scheduler.record(epoch):
                return
        self._stop.wait(IDLE)

    def _notify(self) -> None:
        epoch = self._leadership.epoch()
        if epoch is None:
            self._stop.wait(_STANDBY)
            return
        self._webhooks.step(epoch)

    def _retain(self) -> None:
        epoch = self._leadership.epoch()
        if epoch is None:
            self._stop.wait(IDLE)
            return
        self._retention.run(epoch)
        self._stop.wait(RETENTION)

    def _look(self) -> None:
        if self._leadership.epoch() is None:
            self._watch.rest()
        else:
            self._watch.look()
        self._stop.wait(WATCH)


def _pause_after(done: Dispatched) -> float:
    if done.backlog:
        return BACKLOG
    return HELD if done.held else IDLE


def _listener(url: str, name: str) -> Callable[[], psycopg.Connection]:
    """A way to open a connection for LISTEN: its own, for it waits all its life."""

    def opened() -> psycopg.Connection:
        return psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=5,
            application_name=f"{name} wake-ups",
            keepalives=1,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )

    return opened


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, then run."""
    parser = argparse.ArgumentParser(prog="python -m workers.dispatcher", description="Batchsight's dispatcher")
    parser.add_argument("--check", action="store_true", help="print the settings in force, then exit")
    options = parser.parse_args(arguments)
    settings = Settings()
    if options.check:
        shown = {
            "leader_lease_seconds": settings.leader_lease_seconds,
            "sweep_seconds": settings.sweep_seconds,
            "dispatch_window": settings.dispatch_window,
            "ready_items": settings.ready_items,
        }
        print(json.dumps(shown))
        return 0
    configure_logs(settings, role="dispatcher")
    return Process(settings).run()


if __name__ == "__main__":
    sys.exit(main())
