"""`batchsight bench` against a served api with workers, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cli.bench import percentile
from tests.api.conftest import Served
from tests.api.shell import Shell
from tests.api.worker_thread import working


@pytest.mark.timeout(180)
def test_both_loads_are_measured_and_nothing_is_left(api: Served, tmp_path: Path) -> None:
    shell = Shell(api, tmp_path)
    with working(api.settings, api.database):
        done = shell.run("bench", "--chats", "4", "--concurrency", "2", "--pages", "3", "--json")
        table = shell.run("bench", "--chats", "1", "--pages", "0")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["chats"], report["chats_failed"], report["pages"], report["pages_failed"]) == (4, 0, 3, 0)
    assert 0 < report["first_text"]["p50"] <= report["whole_answer"]["p50"] <= report["whole_answer"]["p99"]
    assert report["tokens_a_second"] > 0
    assert report["pages_a_second"] > 0
    assert "first text of a chat" in table.stdout
    with api.client() as client:
        assert list(client.files.list()) == []
        assert len(list(client.jobs(metadata={"batchsight": "bench"}))) == 1


def test_without_a_key_nothing_is_measured(api: Served, tmp_path: Path) -> None:
    assert Shell(api, tmp_path).run("bench", BATCHSIGHT_API_KEY="").returncode == 5


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_percentile_is_the_least_value_that_so_many_do_not_pass(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9
