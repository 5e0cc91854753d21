"""Faulty networks: a TCP proxy on loopback, and what it can do to S3's answers and to PostgreSQL's commits."""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
import time

_CHUNK = 65_536
_COMMIT = b"COMMIT\x00"


class Proxy:
    """Forwards connections to `upstream` (a loopback port); subclasses look at what passes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.upstream = 0
        self._closed = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def close(self) -> None:
        """Accept nothing more; open connections end with their ends."""
        self._closed = True
        self._listener.close()

    def request(self, data: bytes, client: socket.socket, server: socket.socket) -> bool:
        """Bytes from the client; False ends the connection."""
        del client
        server.sendall(data)
        return True

    def answer(self, data: bytes, client: socket.socket) -> bool:
        """Bytes from the server; False ends the connection."""
        client.sendall(data)
        return True

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream), 2)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for pump in (self._requests, self._answers):
                threading.Thread(target=pump, args=(client, server), name="proxy-pump", daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (data := client.recv(_CHUNK)) and self.request(data, client, server):
                pass
        _end(client, server)

    def _answers(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (data := server.recv(_CHUNK)) and self.answer(data, client):
                pass
        _end(client, server)


class S3Fault(enum.StrEnum):
    """What happens to requests."""

    NONE = "none"
    ERROR = "error"
    HANG = "hang"
    SLOW = "slow"
    TRUNCATED = "truncated"


class S3Proxy(Proxy):
    """`fault` holds for all requests and answers until it is set again."""

    def __init__(self) -> None:
        super().__init__()
        self.fault = S3Fault.NONE
        self.hit = 0

    def request(self, data: bytes, client: socket.socket, server: socket.socket) -> bool:
        """Refuse, delay or forward."""
        if self.fault is S3Fault.ERROR:
            self.hit += 1
            client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return False
        if self.fault is S3Fault.HANG:
            self.hit += 1
            while self.fault is S3Fault.HANG and not self._closed:
                time.sleep(0.05)
            return False
        return super().request(data, client, server)

    def answer(self, data: bytes, client: socket.socket) -> bool:
        """Cut, delay or forward."""
        if self.fault is S3Fault.TRUNCATED:
            self.hit += 1
            client.sendall(data[: len(data) * 3 // 4])
            return False
        if self.fault is S3Fault.SLOW:
            self.hit += 1
            time.sleep(0.2)
        return super().answer(data, client)


class PostgresProxy(Proxy):
    """Armed for n commits: each is forwarded and made, and its answer never arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = 0
        self.hit = 0
        self._lock = threading.Lock()
        self._cut: set[int] = set()

    def request(self, data: bytes, client: socket.socket, server: socket.socket) -> bool:
        """Note a commit whose answer is to be cut, before the server can answer it."""
        if _COMMIT in data:
            with self._lock:
                if self.armed:
                    self.armed -= 1
                    self._cut.add(id(client))
        return super().request(data, client, server)

    def answer(self, data: bytes, client: socket.socket) -> bool:
        """The server has committed by the time it answers."""
        with self._lock:
            if id(client) in self._cut:
                self._cut.discard(id(client))
                self.hit += 1
                return False
        return super().answer(data, client)


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
