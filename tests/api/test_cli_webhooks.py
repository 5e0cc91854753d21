"""Webhooks on the command line: secrets on stdout alone, what was sent, what is sent again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from api.client import Client
from pipelines.settings import Settings
from tests.api.conftest import Served
from tests.api.sending import for_loopback, sending
from tests.api.shell import Shell
from tests.api.work import HandWorker
from tests.integration.control.receiver import Receiver, receiving, say


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return for_loopback(settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def shell(api: Served, tmp_path: Path) -> Shell:
    return Shell(api, tmp_path)


def test_the_walk_of_an_endpoint_on_the_command_line(
    api: Served, client: Client, shell: Shell, receiver: Receiver
) -> None:
    created = shell.run("webhook", "create", receiver.url, "--name", "ci", "--event", "job.failed")
    secret = created.stdout.strip()
    assert secret.startswith("whsec_")
    (made,) = (json.loads(line) for line in shell.run("webhook", "list", "--json").stdout.splitlines())
    assert (made["name"], made["event_types"], made["secret"]) == ("ci", ["job.failed"], None)
    assert made["id"] in created.stderr
    receiver.answer = lambda handler: say(handler, 500)
    with sending(api.settings, api.database):
        tested = shell.run("webhook", "test", made["id"])
        assert (tested.returncode, tested.stdout) == (1, "webhook.test: 500\n")
        receiver.answer = lambda handler: say(handler, 410)
        submitted = shell.run("submit", "ocr", "s3://scans/a.png", "--webhook", made["id"])
        worker = HandWorker(api.database, submitted.stdout.strip())
        worker.plan(["a.png"])
        worker.finish({0: "text"})
        receiver.wait(2)
        until = time.monotonic() + 30
        while client.webhooks.get(made["id"]).enabled:
            assert time.monotonic() < until
            time.sleep(0.05)
        listed = shell.run("webhook", "deliveries", made["id"], "--state", "failed", "--json")
        failed = [json.loads(line) for line in listed.stdout.splitlines()]
        assert [one["event_type"] for one in failed] == ["job.succeeded", "webhook.test"]
        receiver.answer = lambda handler: say(handler, 200)
        assert shell.run("webhook", "replay", made["id"], failed[0]["id"]).returncode == 1
        assert shell.run("webhook", "enable", made["id"]).returncode == 0
        assert shell.run("webhook", "replay", made["id"], "--since", "2020-01-01").stdout == "1\n"
        again = receiver.wait(3)[2]
    assert Webhook(secret).verify(again.body, again.headers)["type"] == "job.succeeded"
    rotated = shell.run("webhook", "rotate", made["id"], "--grace", "0")
    assert rotated.stdout.strip() not in {"", secret}
    assert shell.run("webhook", "replay", made["id"]).returncode == 2
    assert shell.run("webhook", "delete", made["id"]).returncode == 0
    assert shell.run("webhook", "list", "--json").stdout == ""
