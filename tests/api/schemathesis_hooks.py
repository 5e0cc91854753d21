"""What JSON Schema cannot say of a good request, said to the generator, so that the check itself need not be off.

How the turns of a chat alternate (a schema says what a turn is, not which follows); that a deadline lies ahead (a
schema has no clock); that the brackets of a glob close; that an idempotency key belongs to one payload (a schema has no
memory). Only bodies that are otherwise as they should be are touched.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import schemathesis

_KEY = re.compile(r"\A[!-~]{1,200}\Z")
_GLOB = re.compile(r"[\[\]{}]|(?<=/)\.{1,2}(?=/|\Z)")
_numbers = itertools.count()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Mend what only the server can know, in cases that are meant to be good."""
    del context, kwargs
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return  # what is wrong on purpose stays as it is
    for name, value in dict(case.headers or {}).items():
        if name.lower() == "idempotency-key" and isinstance(value, str) and _KEY.match(value):
            case.headers[name] = f"{value.strip(chr(34))}{next(_numbers)}"
    if case.operation.path.endswith("/test"):
        case.query = {**(case.query or {}), "wait": 0}  # nobody sends here: a sample would be waited for in vain
    if isinstance(case.body, dict) and {"kind", "source"} <= set(case.body):
        case.body = _mended(case.body)  # jobs alone: a body that is set anew is judged anew, and forms fail that


def _mended(body: dict[str, Any]) -> dict[str, Any]:
    mended = dict(body)
    if isinstance(mended.get("deadline_at"), str):
        mended["deadline_at"] = f"2999{mended['deadline_at'][4:]}"
    if isinstance(mended.get("source"), dict):
        mended["source"] = _source(mended["source"], chat=mended.get("kind") == "chat")
    if mended.get("kind") == "chat" and isinstance(mended.get("parameters"), dict):
        mended["parameters"] = _parameters(mended["parameters"])
    return mended


def _source(source: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    mended = dict(source)
    if isinstance(mended.get("url"), str) and mended["url"].startswith("s3://"):
        mended["url"] = _GLOB.sub("", mended["url"])
    if isinstance(mended.get("media"), list):
        mended["media"] = [_entry(entry, chat=chat) if isinstance(entry, dict) else entry for entry in mended["media"]]
    return mended


def _entry(entry: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    mended = dict(entry)
    if isinstance(mended.get("url"), str) and mended["url"].startswith("s3://"):
        mended["url"] = _GLOB.sub("_", mended["url"])
    if chat and isinstance(mended.get("parameters"), dict):
        mended["parameters"] = _parameters(mended["parameters"])
    return mended


def _parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """One system turn at most, then user and assistant in turn, the user's last: as many turns as there were."""
    messages = parameters.get("messages")
    known = {"system", "user", "assistant"}
    if not isinstance(messages, list) or not messages:
        return parameters
    if not all(isinstance(message, dict) and message.get("role") in known for message in messages):
        return parameters
    turns = [{**message, "role": "user"} for message in messages]
    for index in range(len(turns) - 2, -1, -2):
        turns[index]["role"] = "assistant"
    if turns[0]["role"] == "assistant":
        turns[0]["role"] = "system"
    return {**parameters, "messages": turns}
