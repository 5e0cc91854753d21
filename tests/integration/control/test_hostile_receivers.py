"""Receivers that redirect, drip, hide in our own network, or are not there."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from pipelines.media.ssrf import AddressPolicy
from tests.integration.control.office import Office, deliveries, ended, endpoint
from tests.integration.control.receiver import Receiver, say
from tests.integration.store.world import World


def test_a_redirect_is_a_failure_and_is_not_followed(world: World, office: Office, receiver: Receiver) -> None:
    tenant = world.tenant()
    endpoint(world, tenant, receiver.url)
    receiver.answer = lambda handler: say(handler, 302, Location=receiver.url + "/secret")
    ended(world, tenant)
    office.send()
    assert [taken.path for taken in receiver.taken] == ["/hook"]
    (row,) = deliveries(world)
    assert row.state == "pending"
    assert "redirect" in row.last_error


def drip(handler: BaseHTTPRequestHandler) -> None:
    for _ in range(600):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-a: b\r\n"[:1])
        handler.wfile.flush()
        time.sleep(0.05)


def drip_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    drip(handler)


def test_a_receiver_that_drips_its_answer_is_cut_off(
    world: World, open_office: Callable[..., Office], receiver: Receiver
) -> None:
    tenant = world.tenant()
    endpoint(world, tenant, receiver.url)
    receiver.answer = drip
    ended(world, tenant)
    office = open_office(total=0.5)
    office.send()  # would last for thirty seconds
    (row,) = deliveries(world)
    assert (row.state, row.last_status) == ("pending", None)
    assert "within 0.5 seconds" in row.last_error


def test_a_status_counts_though_its_body_never_ends(
    world: World, open_office: Callable[..., Office], receiver: Receiver
) -> None:
    tenant = world.tenant()
    endpoint(world, tenant, receiver.url)
    receiver.answer = drip_body
    ended(world, tenant)
    open_office(total=0.5).send()
    (row,) = deliveries(world)
    assert (row.state, row.last_status) == ("succeeded", 200)


def test_a_private_address_is_refused_when_it_is_sent_to(
    world: World, open_office: Callable[..., Office], receiver: Receiver
) -> None:
    tenant = world.tenant()
    endpoint(world, tenant, receiver.url.replace("127.0.0.1", "rebound.example"))
    policy = AddressPolicy(allow_http=True, resolver=lambda host, port: ["93.184.215.14", "127.0.0.1"])
    ended(world, tenant)
    open_office(policy=policy).send()
    assert receiver.taken == []
    (row,) = deliveries(world)
    assert "not an address of the public internet" in row.last_error


def test_nothing_at_the_address_is_a_failure_in_words(world: World, office: Office, receiver: Receiver) -> None:
    tenant = world.tenant()
    endpoint(world, tenant, "http://127.0.0.1:9/hook")
    ended(world, tenant)
    office.send()
    (row,) = deliveries(world)
    assert (row.state, row.last_status) == ("pending", None)
    assert row.last_error.startswith("no answer: ConnectError")
