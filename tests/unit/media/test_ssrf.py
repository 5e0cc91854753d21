"""Addresses that strangers name never reach our own network."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx2
import pytest

from pipelines.jobs.errors import MediaNotFound, SourceForbidden
from pipelines.media.ssrf import AddressPolicy, guarded_client, resolve
from tests.unit.media.servers import CERTIFICATE, answer, http_server

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


class Names:
    """A resolver with a fixed table, which remembers what it was asked."""

    def __init__(self, **table: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._table = {name.replace("_", "."): list(addresses) for name, addresses in table.items()}

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self._table.get(host, [host] if host[0].isdigit() or ":" in host else [])


NOT_GLOBAL = """
127.0.0.1 127.8.8.8 0.0.0.0 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 192.0.2.1
198.18.0.1 203.0.113.5 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 :: ::1 fe80::1 fc00::1 fd12::1 fec0::1
ff02::1 2001:db8::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe
2002:7f00:1:: 2001:0:53aa:64c:0:0:80ff:fffe
"""


@pytest.mark.parametrize("address", NOT_GLOBAL.split())
def test_addresses_that_are_not_global_are_refused(address: str) -> None:
    assert not AddressPolicy().permits(ipaddress.ip_address(address))
    with pytest.raises(SourceForbidden):
        AddressPolicy(resolver=Names(a_test=[address])).choose("a.test", 443)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "64:ff9b::808:808"])
def test_global_addresses_are_reached(address: str) -> None:
    assert AddressPolicy(resolver=Names(a_test=[address])).choose("a.test", 443) == address


def test_one_bad_address_among_good_ones_is_enough() -> None:
    policy = AddressPolicy(resolver=Names(a_test=["93.184.216.34", "127.0.0.1"]))
    with pytest.raises(SourceForbidden):
        policy.choose("a.test", 443)


def test_an_installation_may_open_networks_of_its_own() -> None:
    policy = AddressPolicy(networks=(ipaddress.ip_network("10.1.0.0/16"),))
    assert policy.permits(ipaddress.ip_address("10.1.2.3"))
    assert policy.permits(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert not policy.permits(ipaddress.ip_address("10.2.0.1"))


def test_a_name_that_does_not_resolve_is_not_found() -> None:
    with pytest.raises(MediaNotFound):
        AddressPolicy(resolver=Names()).choose("nowhere.test", 443)
    with pytest.raises(MediaNotFound):
        resolve("x" * 70 + ".invalid", 443)


def test_numbers_in_disguise_are_seen_through_by_the_systems_resolver() -> None:
    for disguise in ("2130706433", "0x7f.1", "127.1", "0177.0.0.1"):
        assert {str(address) for address in resolve(disguise, 80)} == {"127.0.0.1"}


@pytest.mark.parametrize(
    "url",
    [
        "http://a.test/",
        "ftp://a.test/",
        "file:///etc/passwd",
        "https://user@a.test/",
        "https://user:secret@a.test/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://a.test:22/",
    ],
)
def test_a_request_is_refused_before_a_byte_leaves(url: str) -> None:
    policy = AddressPolicy(resolver=Names(a_test=["127.0.0.1"]))
    with guarded_client(policy=policy) as client, pytest.raises((SourceForbidden, httpx2.UnsupportedProtocol)):
        client.get(url)


@pytest.fixture
def port() -> Iterator[int]:
    def hosts(handler: BaseHTTPRequestHandler) -> None:
        answer(200, handler.headers["Host"].encode())(handler)

    def hop(handler: BaseHTTPRequestHandler) -> None:
        number = int(handler.path.partition("?")[2])
        answer(302, Location=f"/hop?{number - 1}" if number > 1 else "/host")(handler)

    routes = {
        "/host": hosts,
        "/hop": hop,
        "/inside": answer(302, Location="http://169.254.169.254/latest/meta-data/"),
        "/renamed": answer(302, Location="http://inner.test/host"),
        "/file": answer(302, Location="file:///etc/passwd"),
    }
    with http_server(routes) as port:
        yield port


def open_client(names: Names, **options: Any) -> httpx2.Client:
    return guarded_client(policy=AddressPolicy(allow_http=True, networks=LOOPBACK, resolver=names), **options)


def test_the_server_sees_the_name_and_the_connection_goes_to_the_checked_address(port: int) -> None:
    names = Names(media_test=["127.0.0.1"])
    with open_client(names) as client:
        answered = client.get(f"http://media.test:{port}/host")
    assert answered.text == f"media.test:{port}"
    assert str(answered.url) == f"http://media.test:{port}/host"
    assert names.asked == ["media.test"], "resolved once: a second answer of the name server is never asked for"


def test_redirects_are_followed_three_times(port: int) -> None:
    with open_client(Names(media_test=["127.0.0.1"])) as client:
        assert client.get(f"http://media.test:{port}/hop?3").text.startswith("media.test")
        with pytest.raises(httpx2.TooManyRedirects):
            client.get(f"http://media.test:{port}/hop?4")


@pytest.mark.parametrize("path", ["/inside", "/renamed", "/file"])
def test_a_redirect_is_checked_like_any_request(port: int, path: str) -> None:
    names = Names(media_test=["127.0.0.1"], inner_test=["10.0.0.7"])
    with open_client(names) as client, pytest.raises((SourceForbidden, httpx2.UnsupportedProtocol)):
        client.get(f"http://media.test:{port}{path}")


def test_webhooks_follow_no_redirect(port: int) -> None:
    with open_client(Names(media_test=["127.0.0.1"]), max_redirects=0) as client:
        assert client.get(f"http://media.test:{port}/hop?1").status_code == 302


def test_no_proxy_is_taken_from_the_environment(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with open_client(Names(media_test=["127.0.0.1"])) as client:
        assert client.get(f"http://media.test:{port}/host").status_code == 200


def test_certificates_are_checked_against_the_name() -> None:
    names = Names(media_test=["127.0.0.1"], other_test=["127.0.0.1"])
    with (
        http_server({"/": answer(200, b"over tls")}, tls=True) as port,
        guarded_client(policy=AddressPolicy(networks=LOOPBACK, resolver=names), ca_file=str(CERTIFICATE)) as client,
    ):
        assert client.get(f"https://media.test:{port}/").text == "over tls"
        with pytest.raises(httpx2.ConnectError):
            client.get(f"https://other.test:{port}/")
