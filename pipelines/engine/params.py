"""Checks generation options. Free of torch: the api reads options too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pipelines.engine.errors import BadRequest, UnknownOption
from pipelines.engine.types import GenerationParams

_NAMES = frozenset(field.name for field in fields(GenerationParams))


def parse_params(options: Mapping[str, Any]) -> GenerationParams:
    """Build `GenerationParams` from a plain mapping; an option that does not exist is an `UnknownOption`."""
    if unknown := sorted(set(options) - _NAMES):
        raise UnknownOption(f"unknown generation option {unknown[0]}; known are {', '.join(sorted(_NAMES))}")
    values = dict(options)
    stop = values.get("stop", ())
    values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
    params = GenerationParams(**values)
    check_params(params)
    return params


def check_params(params: GenerationParams) -> None:
    """Raise `BadRequest` for a value of a wrong type or out of range."""
    if not isinstance(params.do_sample, bool):
        raise BadRequest("do_sample must be true or false", param="do_sample")
    _whole("max_new_tokens", params.max_new_tokens, least=1)
    _whole("top_k", params.top_k, least=0)
    _real("temperature", params.temperature)
    _real("repetition_penalty", params.repetition_penalty)
    _real("top_p", params.top_p, most=1.0)
    if params.seed is not None:
        _whole("seed", params.seed, least=0)
    if any(not isinstance(stop, str) or not stop for stop in params.stop):
        raise BadRequest("stop must hold texts that are not empty", param="stop")


def _whole(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadRequest(f"{name} must be a whole number of at least {least}", param=name)


def _real(name: str, value: Any, *, most: float = math.inf) -> None:
    good = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value) and 0 < value <= most
    if not good:
        above = "" if most == math.inf else f", at most {most:g}"
        raise BadRequest(f"{name} must be a finite number above 0{above}", param=name)
