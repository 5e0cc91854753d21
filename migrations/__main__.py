"""`python -m migrations [upgrade|downgrade] [REVISION]`, on the database that the settings name."""

from __future__ import annotations

import argparse

import migrations
from pipelines.settings import Settings


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    parser.add_argument("direction", nargs="?", choices=("upgrade", "downgrade"), default="upgrade")
    parser.add_argument("revision", nargs="?", default="head", help="`base` drops everything")
    arguments = parser.parse_args()
    database_url = Settings().database_url
    if arguments.direction == "upgrade":
        migrations.upgrade(database_url, arguments.revision)
        return
    if arguments.revision == "head":
        parser.error("downgrade needs the revision to go back to")
    migrations.downgrade(database_url, arguments.revision)


if __name__ == "__main__":
    main()
