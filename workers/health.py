"""`/healthz` and `/metrics` of a worker or dispatcher, on a port of its own: what a supervisor or Kubernetes asks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import prometheus_client

_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - what it means, not an address to bind


def health_url(host: str, port: int) -> str:
    """How this machine itself reaches a health endpoint that listens on `host`."""
    name = _EVERYWHERE.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/healthz"


class HealthServer:
    """Serves on a thread until closed. `healthy()` decides between 200 and 503."""

    def __init__(self, port: int, healthy: Callable[[], bool], *, host: str = "127.0.0.1") -> None:
        class Handler(BaseHTTPRequestHandler):
            """Two paths, nothing else."""

            def do_GET(self) -> None:
                """Answer a probe or a scrape."""
                if self.path == "/healthz":
                    ok = healthy()
                    self._answer(200 if ok else 503, "text/plain", b"ok\n" if ok else b"unhealthy\n")
                elif self.path == "/metrics":
                    self._answer(200, prometheus_client.CONTENT_TYPE_LATEST, prometheus_client.generate_latest())
                else:
                    self._answer(404, "text/plain", b"try /healthz or /metrics\n")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Probes are not worth a log line."""

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class Server(ThreadingHTTPServer):
            """IPv4 or IPv6, as the address has it."""

            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True

        self._server = Server((host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is served (chosen by the system for 0)."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
