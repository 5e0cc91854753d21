"""A small real HTTP server that speaks the chat completions format, over any engine that takes images.

`faults` is a list of what to do with the next requests instead of answering: a status with headers, or a name.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipelines.engine.types import (
    AnswerPrefix,
    EncodedImage,
    EncodedImages,
    Engine,
    EngineRequest,
    GenerationParams,
)


class OpenAIServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, engine: Engine) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.engine = engine
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.faults: list[tuple[int, dict[str, str]] | str] = []
        self.lock = threading.Lock()
        self.inside = 0
        self.most_inside = 0
        self.broken_pipes = 0
        self.key: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is counted by the handler; nothing is printed."""


@contextmanager
def serve(engine: Engine) -> Iterator[OpenAIServer]:
    server = OpenAIServer(engine)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def to_request(body: dict[str, Any]) -> EngineRequest:
    """Back from the wire: parts to placeholders and images."""
    images: list[EncodedImage] = []
    turns: list[tuple[str, str]] = []
    question, system, video = "", None, False
    for message in body["messages"]:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        text = ""
        for part in parts:
            if part["type"] == "text":
                text += part["text"]
                continue
            video = part["type"] == "video_url"
            head, _, data = part[part["type"]]["url"].partition(",")
            mime = head.removeprefix("data:").removesuffix(";base64")
            for each in data.split(","):
                raw = base64.b64decode(each)
                images.append(EncodedImage(mime=mime, data=raw, digest=raw.hex()))
                text += "<image>\n"
        if message["role"] == "system":
            system = text
        elif message["role"] == "user":
            question = text
        else:
            turns.append((question, text))
    greedy = body["temperature"] == 0
    prefix = None
    if body["messages"][-1]["role"] == "assistant":
        assert body["continue_final_message"] is True
        assert body["add_generation_prompt"] is False
        prefix = AnswerPrefix(text=turns.pop()[1])
    return EngineRequest(
        request_id="remote",
        question=question,
        history=tuple(turns),
        system=system,
        prefix=prefix,
        media=EncodedImages(images=tuple(images), video=video) if images else None,
        # What the fake answers must depend on the media: their bytes stand for the hash.
        media_hash="+".join(image.digest for image in images),
        params=GenerationParams(
            max_new_tokens=body["max_tokens"],
            do_sample=not greedy,
            temperature=1.0 if greedy else body["temperature"],
            stop=tuple(body.get("stop", ())),
        ),
    )


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer
    protocol_version = "HTTP/1.1"
    _is_inside = False

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""

    def do_GET(self) -> None:
        if self.server.key and self.headers.get("authorization") != f"Bearer {self.server.key}":
            self._json(401, {"error": {"message": "wrong key"}}, {})
            return
        self._json(200, {"object": "list", "data": [{"id": "internvl", "object": "model"}]}, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.inside += 1
            server.most_inside = max(server.most_inside, server.inside)
            self._is_inside = True
            fault = server.faults.pop(0) if server.faults else None
        try:
            self._answer(body, fault)
        except (BrokenPipeError, ConnectionResetError):
            with server.lock:
                server.broken_pipes += 1
        finally:
            self._leave()

    def _leave(self) -> None:
        """Before the last bytes are sent: a client that has read them may be back before this thread goes on."""
        with self.server.lock:
            if self._is_inside:
                self._is_inside = False
                self.server.inside -= 1

    def _answer(self, body: dict[str, Any], fault: tuple[int, dict[str, str]] | str | None) -> None:
        if isinstance(fault, tuple):
            self._json(fault[0], {"error": {"message": "secret path /srv/model"}}, fault[1])
            return
        if fault == "hang up":
            self.close_connection = True
            return
        handle = self.server.engine.submit(to_request(body))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number, piece in enumerate(handle.stream()):
            self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            if fault == "cut" and number == 1:
                return
            if fault == "error" and number == 1:
                self._event({"error": {"message": "secret path /srv/model"}})
                return
        completion = handle.future.result()
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": completion.finish_reason}]})
        usage = {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens}
        self._event({"choices": [], "usage": usage})
        self._leave()
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, value: dict[str, Any], headers: dict[str, str]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)
