"""`python -m api`: serve. `--check` prints what would be served, and exits."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import uvicorn

from api.app import create_app
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
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        lifespan="on",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
