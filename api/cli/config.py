"""Where the command line finds the server: flags, then the environment, `.env`, the user's file, defaults."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

from api.client.errors import ConfigurationError
from api.client.transport import DEFAULT_URL


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server and the key for it. `source`: where each came from, for messages."""

    url: str
    api_key: str | None
    key_source: str


def user_config_path(environment: Mapping[str, str]) -> Path:
    """`$XDG_CONFIG_HOME/batchsight/config.toml`."""
    base = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "~")).expanduser() / ".config")
    return Path(base) / "batchsight" / "config.toml"


def resolve(
    *, url: str | None, api_key: str | None, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Target:
    """The first place that says something wins, for each value by itself. Raises `ConfigurationError`."""
    environ = os.environ if environment is None else environment
    local = dotenv_values((folder or Path.cwd()) / ".env")
    user = _user_config(user_config_path(environ))
    places: list[tuple[str, str | None, str | None]] = [
        ("the command line", url, api_key),
        ("the environment", environ.get("BATCHSIGHT_URL"), environ.get("BATCHSIGHT_API_KEY")),
        (".env", local.get("BATCHSIGHT_URL"), local.get("BATCHSIGHT_API_KEY")),
        (str(user_config_path(environ)), user.get("url"), user.get("api_key")),
    ]
    found_url = next((place[1] for place in places if place[1]), DEFAULT_URL)
    key_source, found_key = next(((place[0], place[2]) for place in places if place[2]), ("nowhere", None))
    return Target(url=found_url, api_key=found_key, key_source=key_source)


def _user_config(path: Path) -> dict[str, str]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    return {name: str(value) for name, value in values.items() if name in {"url", "api_key"}}
