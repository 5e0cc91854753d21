"""Requests to addresses that strangers name, which must never reach our own network.

A host is resolved once; each of its addresses must be global, and the connection goes to the one that was checked, so
a name that resolves differently a moment later (DNS rebinding) gains nothing. Redirects pass through the same check.
No proxy and no netrc are taken from the environment. Webhooks use the same client with `max_redirects=0`.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx2

from pipelines.jobs.errors import MediaNotFound, SourceForbidden, SourceUnavailable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, by the system's resolver. Raises `MediaNotFound`, `SourceUnavailable`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise SourceUnavailable(f"The name {host} could not be resolved just now.") from error
        raise MediaNotFound(f"The name {host} does not resolve.") from error
    except UnicodeError as error:
        raise MediaNotFound("The address holds a host name that is none.") from error
    return [str(entry[4][0]) for entry in found]


@dataclass(frozen=True, kw_only=True)
class AddressPolicy:
    """What may be reached. `networks` are reachable though they are not global: an installation's own media servers."""

    allow_http: bool = False
    networks: tuple[Network, ...] = ()
    resolver: Callable[[str, int], Sequence[str]] = resolve

    def choose(self, host: str, port: int) -> str:
        """An address of the host, all of them having been checked.

        Raises `SourceForbidden`, `MediaNotFound`, `SourceUnavailable`.
        """
        addresses = [ipaddress.ip_address(address) for address in self.resolver(host, port)]
        if not addresses:
            raise MediaNotFound(f"The name {host} does not resolve.")
        if not all(self.permits(address) for address in addresses):
            raise SourceForbidden(f"{host} is not an address of the public internet; such sources are not fetched.")
        return str(addresses[0])

    def permits(self, address: Address) -> bool:
        """Whether one address may be reached."""
        if any(address.version == network.version and address in network for network in self.networks):
            return True
        inner = _embedded(address)
        if inner is not None:
            return self.permits(inner)
        site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
        return address.is_global and not (address.is_multicast or address.is_reserved or site_local)


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for: a way around the check, if it were not looked through."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


class GuardedTransport(httpx2.BaseTransport):
    """Checks each request, the redirected ones too, and pins it to the address that passed."""

    def __init__(self, policy: AddressPolicy, inner: httpx2.BaseTransport) -> None:
        self._policy = policy
        self._inner = inner

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send it. Raises `SourceForbidden` before a byte leaves."""
        url = request.url
        if url.scheme != "https" and not (self._policy.allow_http and url.scheme == "http"):
            raise SourceForbidden("Only https addresses are fetched.")
        if url.userinfo:
            raise SourceForbidden("An address must not hold a user name or password.")
        if not url.host:
            raise SourceForbidden("The address names no host.")
        address = self._policy.choose(url.host, url.port or (443 if url.scheme == "https" else 80))
        # The Host header was set from the name; the certificate is checked against the name as well.
        request.extensions = {**request.extensions, "sni_hostname": url.host}
        request.url = url.copy_with(host=address)
        try:
            return self._inner.handle_request(request)
        finally:
            request.url = url  # or a relative redirect would be resolved against the bare address

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


def guarded_client(
    *,
    max_redirects: int = 3,
    policy: AddressPolicy | None = None,
    connect_seconds: float = 10,
    idle_seconds: float = 10,
    ca_file: str | None = None,
) -> httpx2.Client:
    """A client whose every request is checked; close it when done. `ca_file` replaces the usual authorities."""
    # A kept connection is found again by its address alone: another name on that address must get its own certificate
    # check.
    inner = httpx2.HTTPTransport(
        verify=ssl.create_default_context(cafile=ca_file) if ca_file else True,
        trust_env=False,
        limits=httpx2.Limits(max_connections=32, max_keepalive_connections=0),
    )
    return httpx2.Client(
        transport=GuardedTransport(policy or AddressPolicy(), inner),
        trust_env=False,
        follow_redirects=max_redirects > 0,
        max_redirects=max_redirects,
        timeout=httpx2.Timeout(idle_seconds, connect=connect_seconds),
        headers={"Accept-Encoding": "identity", "User-Agent": "batchsight"},
    )
