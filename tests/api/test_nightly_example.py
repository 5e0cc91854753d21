"""README's schedule, run as it stands there: nights through both changes of the clock, over a prefix that changes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from PIL import Image

from api.client import Client, Job
from deploy.local.servers import ObjectStore
from pipelines.control.firing import Scheduler
from pipelines.settings import Settings
from pipelines.store import leader
from pipelines.store.leader import Epoch, Terms
from pipelines.store.session import Database
from tests.api.conftest import Served, add_caller, serving
from tests.api.worker_thread import working

ROOT = Path(__file__).parents[2]
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def api(settings: Settings, database: Database) -> Iterator[Served]:
    """An api whose tenants may read README's bucket."""
    open_bucket = settings.model_copy(update={"allowed_buckets": ("media",)})
    caller = add_caller(database, "acme")
    with serving(open_bucket) as (url, app):
        yield Served(url=url, settings=open_bucket, database=database, caller=caller, app=app)


class Nights:
    """The bucket, a leader whose clock the test sets, and a schedule."""

    def __init__(self, api: Served, client: Client, s3: Any, folder: Path, schedule_id: str) -> None:
        self._api, self._client, self._s3, self._folder = api, client, s3, folder
        self._schedule_id = schedule_id
        with api.database.begin() as conn:
            epoch = leader.acquire(conn, "test", Terms(lease=600, grace=60, gap=600))
        assert epoch is not None
        self._epoch: Epoch = epoch
        rules = api.app.state.services.submit_rules
        self._scheduler = Scheduler(api.database, rules)

    def put(self, key: str, colour: str | None) -> None:
        """A photo of this colour; None: bytes that are no photo."""
        path = self._folder / "photo.png"
        if colour is None:
            path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
        else:
            Image.new("RGB", (64, 64), colour).save(path)
        self._s3.upload_file(str(path), "media", key)

    def begin(self, evening: datetime) -> None:
        """Set the clock: what is due next is the first time after this evening."""
        shown = self._client.schedules.get(self._schedule_id)
        first = (evening + timedelta(days=1)).replace(hour=2, minute=30)
        assert (shown.cron, shown.timezone) == ("30 2 * * *", "Europe/Berlin")
        with self._api.database.begin() as conn:
            conn.exec_driver_sql("UPDATE schedules SET next_at = %(first)s", {"first": first})

    def night(self) -> tuple[str, Job, list[str]]:
        """Wait until it is due, and for its job: the local time, the job, the photos that were looked at."""
        due = self._client.schedules.get(self._schedule_id).next_at
        assert due is not None
        assert not self._scheduler.fire(self._epoch, now=due - timedelta(seconds=1)).runs, "not before its time"
        for _ in range(2):  # the second look finds nothing to do
            self._scheduler.fire(self._epoch, now=due + timedelta(seconds=3))
        last = self._client.schedules.get(self._schedule_id).last_run
        assert last is not None
        assert last.job_id is not None
        assert last.scheduled_at == due
        job = self._client.wait(last.job_id, timeout=120)
        names = sorted(item.name for item in self._client.items(job.id))
        return due.astimezone(BERLIN).strftime("%m-%d %H:%M%z"), job, names


def test_the_nightly_example_through_both_changes_of_the_clock(
    api: Served, client: Client, database: Database, object_store_server: ObjectStore, s3: Any, tmp_path: Path
) -> None:
    object_store_server.create_bucket("media")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = re.search(r"^batchsight (schedule create nightly-captions .*)$", readme, re.MULTILINE)
    assert line is not None
    environment = {"BATCHSIGHT_URL": api.url, "BATCHSIGHT_API_KEY": api.caller.key, "HOME": str(tmp_path)}
    made = subprocess.run(
        [sys.executable, "-m", "api.cli.main", *shlex.split(line[1], comments=True)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    nights = Nights(api, client, s3, tmp_path, made.stdout.strip())
    with working(api.settings, database):
        nights.begin(datetime(2027, 3, 26, 22, tzinfo=BERLIN))
        nights.put("photos/a.png", "red")
        nights.put("photos/b.png", None)
        time, job, looked_at = nights.night()
        assert (time, job.state, looked_at) == ("03-27 02:30+0100", "partial", ["photos/a.png", "photos/b.png"])

        nights.put("photos/c.png", "blue")
        time, job, looked_at = nights.night()
        assert time == "03-28 03:00+0200", "half past two does not exist this night"
        assert (job.state, looked_at) == ("partial", ["photos/b.png", "photos/c.png"]), "what failed is done again"

        nights.put("photos/b.png", "green")
        time, job, looked_at = nights.night()
        assert (time, job.state, looked_at) == ("03-29 02:30+0200", "succeeded", ["photos/b.png"])
        assert job.schedule_id == nights_id(client)

        nights.begin(datetime(2027, 10, 29, 22, tzinfo=BERLIN))
        time, job, looked_at = nights.night()
        assert (time, job.state, looked_at) == ("10-30 02:30+0200", "succeeded", []), "nothing was new"
        assert (job.progress, job.total) == (1.0, 0)

        nights.put("photos/a.png", "yellow")
        time, job, looked_at = nights.night()
        assert time == "10-31 02:30+0200", "of the two, the first"
        assert (job.state, looked_at) == ("succeeded", ["photos/a.png"]), "its version has changed"

        time, job, looked_at = nights.night()
        assert (time, looked_at) == ("11-01 02:30+0100", []), "and none an hour after the first"
    runs = list(client.schedules.runs(nights_id(client)))
    assert [run.state for run in runs] == ["fired"] * 6


def nights_id(client: Client) -> str:
    (found,) = client.schedules.list()
    assert found.name == "nightly-captions"
    return found.id
