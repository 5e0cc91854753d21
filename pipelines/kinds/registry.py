"""Finds the kinds: every module of this package that binds `KIND`. Adding a kind is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
import threading
from typing import Any

import pipelines.kinds
from pipelines.jobs.errors import UnknownKind
from pipelines.kinds.base import Kind

AnyKind = Kind[Any]

_lock = threading.Lock()
_kinds: dict[str, AnyKind] = {}
_NOT_KINDS = frozenset({"base", "registry"})


def _discover() -> dict[str, AnyKind]:
    with _lock:
        for module_info in pkgutil.iter_modules(pipelines.kinds.__path__):
            if module_info.name in _NOT_KINDS:
                continue
            module = importlib.import_module(f"pipelines.kinds.{module_info.name}")
            kind: AnyKind = module.KIND
            _kinds[kind.name] = kind
        return dict(_kinds)


def get(name: str) -> AnyKind:
    """The kind of this name. Raises `UnknownKind`, naming those there are."""
    kind = _kinds.get(name)
    if kind is None:
        found = _discover()
        kind = found.get(name)
        if kind is None:
            raise UnknownKind(f"there is no job kind {name!r}; the kinds are {', '.join(sorted(found))}", param="kind")
    return kind


def all_kinds() -> tuple[AnyKind, ...]:
    """Every kind, by name."""
    return tuple(kind for _, kind in sorted(_discover().items()))
