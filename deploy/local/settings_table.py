"""`python -m deploy.local.settings_table`: README's table of settings, from `pipelines.settings`."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from pipelines.settings import GiB, MiB, Settings


def render() -> str:
    """One row a setting: its variable, its default, what it says."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `{variable(name, field)}` | {_shown(field.default)} | {_escaped(field.description or '')} |")
    return "\n".join(lines)


def variable(name: str, field: FieldInfo) -> str:
    """The shortest environment variable that sets a field: the plain name where there is one."""
    alias = field.validation_alias
    names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []
    return min(names, key=len, default=f"BATCHSIGHT_{name.upper()}")


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= MiB:
        for unit, size in (("GiB", GiB), ("MiB", MiB)):
            if value % size == 0:
                return f"`{value}` ({value // size} {unit})"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(render())
