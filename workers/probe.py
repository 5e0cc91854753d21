"""`python -m workers.probe URL`: exit 0 where the address answers 2xx within three seconds. The images have no curl."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Sequence

_TIMEOUT = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask once; 0 healthy, 1 not, 2 wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 1 or not given[0].startswith(("http://", "https://")):
        print("usage: python -m workers.probe http://127.0.0.1:PORT/healthz", file=sys.stderr)
        return 2
    return 0 if answers(given[0]) else 1


def answers(url: str) -> bool:
    """Whether the address answers 2xx; says on stderr why not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # itself, never through a proxy
    try:
        with opener.open(url, timeout=_TIMEOUT) as reply:
            return bool(200 <= reply.status < 300)
    except OSError as error:  # URLError and HTTPError are OSErrors
        print(f"{url}: {error}", file=sys.stderr)
        return False


if __name__ == "__main__":
    sys.exit(main())
