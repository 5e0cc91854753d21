"""`python -m api`: serve. `--check` prints what would be served, and exits."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn

from api.app import create_app
from api.services import Services
from pipelines.logs import configure_logs
from pipelines.settings import Settings

_GRACE = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, then serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m api", description="Batchsight's api server")
    parser.add_argument("--check", action="store_true", help="build the application, print its address, then exit")
    parser.add_argument("--host", help="listen address (BATCHSIGHT_API_HOST)")
    parser.add_argument("--port", type=int, help="listen port (BATCHSIGHT_API_PORT)")
    options = parser.parse_args(arguments)
    settings = Settings()
    host = options.host or settings.api_host
    port = settings.api_port if options.port is None else options.port
    app = create_app(settings)
    if options.check:
        print(json.dumps({"host": host, "port": port, "paths": len(app.openapi()["paths"])}))
        return 0
    configure_logs(settings, role="api")
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        lifespan="on",
    )
    server = _Server(config)
    server.run()
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    """Ends long polls and event streams at the first signal, so that only requests that do work are waited for."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called between two instructions of the event loop's own thread. The signal is not raised again: exit 0."""
        del frame
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        services: Services | None = getattr(self.config.app.state, "services", None)  # type: ignore[union-attr]  # our own application
        if services is not None:
            services.release()


if __name__ == "__main__":
    sys.exit(main())
