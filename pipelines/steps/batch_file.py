"""OpenAI batch files: one request a line, `{"custom_id", "method", "url", "body"}`.

The form of every line is checked before a batch is accepted: one bad line refuses the batch, as OpenAI does. What a
body asks for is checked when it is planned: a bad body fails alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipelines.jobs.errors import InvalidParameter
from pipelines.jobs.violations import most_telling, place_of
from pipelines.steps.chat_request import ChatRequest

ENDPOINT = "/v1/chat/completions"
MAX_LINES = 50_000
MAX_PROBLEMS = 100
_LONGEST_ID = 512


@dataclass(frozen=True, kw_only=True)
class BatchLine:
    """A line whose form is right. `number` counts from 1."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BatchProblem:
    """A line that refuses the batch."""

    number: int | None
    code: str
    message: str
    param: str | None = None

    def to_json(self) -> dict[str, Any]:
        """OpenAI's form."""
        return {"code": self.code, "line": self.number, "message": self.message, "param": self.param}


@dataclass(frozen=True, kw_only=True)
class BatchCheck:
    """How many requests a file holds, and what refuses it (the first hundred problems)."""

    lines: int
    problems: tuple[BatchProblem, ...]


def read_batch(chunks: Iterable[bytes]) -> Iterator[BatchLine | BatchProblem]:
    """The lines in order, whatever way the bytes are cut. Blank lines are skipped."""
    for number, raw in enumerate(_lines(chunks), start=1):
        if raw.strip():
            yield _parsed(number, raw)


def check_batch(chunks: Iterable[bytes], *, endpoint: str, model: str) -> BatchCheck:
    """Read the whole file once, remembering no more than its custom ids."""
    seen: set[str] = set()
    problems: list[BatchProblem] = []
    lines = 0
    for line in read_batch(chunks):
        lines += 1
        problem = line if isinstance(line, BatchProblem) else _problem(line, seen, endpoint, model)
        if problem is not None:
            problems.append(problem)
        if lines > MAX_LINES:
            problems.append(
                BatchProblem(
                    number=None, code="too_many_lines", message=f"a batch holds {MAX_LINES} requests; split it"
                )
            )
        if len(problems) >= MAX_PROBLEMS or lines > MAX_LINES:
            break
    if not lines:
        problems.append(BatchProblem(number=None, code="empty_file", message="the file holds no request"))
    return BatchCheck(lines=lines, problems=tuple(problems))


def chat_request_of(body: dict[str, Any]) -> ChatRequest:
    """The typed body. Raises `InvalidParameter`, naming the field."""
    try:
        request = ChatRequest.model_validate_json(json.dumps(body))
    except ValidationError as error:
        first = most_telling(error.errors(include_url=False))
        param = ".".join(("body", *place_of(first)))
        raise InvalidParameter(f"{param}: {first['msg'].removeprefix('Value error, ')}", param=param) from error
    if request.stream:
        raise InvalidParameter("body.stream: a batch does not stream; leave it out", param="body.stream")
    return request


def _problem(line: BatchLine, seen: set[str], endpoint: str, model: str) -> BatchProblem | None:
    if line.custom_id in seen:
        return BatchProblem(
            number=line.number,
            code="duplicate_custom_id",
            message=f"{line.custom_id!r} stands in the file twice",
            param="custom_id",
        )
    seen.add(line.custom_id)
    if line.url != endpoint:
        return BatchProblem(
            number=line.number,
            code="url_mismatch",
            message=f"the line asks for {line.url!r}, the batch for {endpoint}",
            param="url",
        )
    if line.body.get("model") != model:
        return BatchProblem(
            number=line.number,
            code="model_mismatch",
            message=f"there is no other model here than {model}",
            param="body.model",
        )
    return None


def _parsed(number: int, raw: bytes) -> BatchLine | BatchProblem:
    def wrong(message: str, param: str | None = None) -> BatchProblem:
        return BatchProblem(
            number=number,
            code="invalid_json_line" if param is None else "invalid_request",
            message=message,
            param=param,
        )

    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return wrong("the line is not valid JSON")
    if not isinstance(value, dict):
        return wrong("the line is not a JSON object")
    custom_id, body = value.get("custom_id"), value.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_ID:
        return wrong(f"custom_id must be a text of 1 to {_LONGEST_ID} characters", "custom_id")
    if value.get("method") != "POST":
        return wrong("method must be POST", "method")
    if not isinstance(body, dict):
        return wrong("body must be an object", "body")
    return BatchLine(number=number, custom_id=custom_id, url=str(value.get("url")), body=body)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest
