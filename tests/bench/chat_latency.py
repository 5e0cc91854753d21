"""First text of a chat through HTTP and the queue, against the engine alone: what the pipeline costs a waiting person.

    python -m tests.bench.chat_latency [--json FILE] [--requests 40] [--words 24]

One request at a time on an idle system, the bundled checkpoint, one engine thread on both sides, one after the other.
Alone: `engine.submit` in this process to the first piece of text. Through: the request's first byte to the first
chunk with text, over loopback. The difference that counts is taken request by request: what the engine itself reports
for the same request (its `first_token_seconds`, kept with the result) is subtracted from what the client saw, so that
noise of the machine between the two runs does not enter. Beside it, where the time goes, by the database's clock.
"""

from __future__ import annotations

import argparse
import io
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
from PIL import Image

from api.cli.bench import Chatted, stream_chat
from deploy.local.stack import BUNDLED_CHECKPOINT
from pipelines.engine.load import load_engine
from pipelines.engine.options import EngineOptions
from pipelines.engine.types import Engine, EngineRequest, GenerationParams, Priority, Tiles
from pipelines.media.images import cut_tiles, open_image
from pipelines.media.limits import MediaLimits
from pipelines.store.session import Database
from tests.bench.orchestration_stack import Figures, bench, engine_stack, quantiles

_WARM = 3
_MODEL = "internvl-chat-v1-5"

# Where a chat's time goes until its engine begins, and what the engine says of itself.
_STAGES = """
SELECT extract(epoch FROM i.created_at - j.created_at) AS planned,
       extract(epoch FROM i.prepared_at - i.created_at) AS prepared,
       extract(epoch FROM i.started_at - i.prepared_at) AS claimed,
       (r.provenance ->> 'first_token_seconds')::float AS engine
FROM jobs j
JOIN items i ON i.job_id = j.id
JOIN results r ON r.job_id = i.job_id AND r.seq = i.seq
WHERE j.id = ANY(%s::uuid[])
ORDER BY j.id
"""


def measure(folder: Path, chosen: argparse.Namespace) -> Figures:
    """Text alone, then a picture of one tile."""
    alone = _alone(chosen.requests, chosen.words)
    environment = {
        "BATCHSIGHT_ENGINE": "local",
        "MODEL": str(BUNDLED_CHECKPOINT),
        "BATCHSIGHT_MODEL_NAME": _MODEL,
        "BATCHSIGHT_ENGINE_THREADS": "1",
    }
    figures: dict[str, object] = {"requests": chosen.requests, "tokens": chosen.words}
    with engine_stack(folder, slots=8, environment=environment) as stack:
        addresses = stack.addresses
        assert addresses is not None
        database = Database(addresses.database_url)
        headers = {"authorization": f"Bearer {addresses.api_key}"}
        with httpx2.Client(base_url=addresses.api_url, headers=headers, timeout=120) as http:
            for name, picture in (("text", False), ("picture", True)):
                seen = [
                    stream_chat(http, _body(number, picture=picture, words=chosen.words))
                    for number in range(chosen.requests + _WARM)
                ][_WARM:]
                assert all(chat.failed is None for chat in seen), seen
                figures.update(_figures(name, alone[name], seen, _stages(database, seen)))
        database.close()
    return figures


def _figures(name: str, alone: Sequence[float], seen: Sequence[Chatted], stages: dict[str, list[float]]) -> Figures:
    firsts = [chat.first_text for chat in seen]
    cost = [first - engine for first, engine in zip(firsts, stages["engine"], strict=True)]
    measured = {
        "alone": alone,
        "through": firsts,
        "pipeline_cost": cost,
        "engine_in_the_worker": stages["engine"],
        "submitted_to_planned": stages["planned"],
        "planned_to_prepared": stages["prepared"],
        "prepared_to_claimed": stages["claimed"],
    }
    return {
        f"{name}_{what}_{quantile}": value
        for what, values in measured.items()
        for quantile, value in quantiles(values).items()
    }


def _alone(requests: int, words: int) -> dict[str, list[float]]:
    options = EngineOptions(model_name=_MODEL, device="cpu", dtype="auto", max_slots=8, threads=1)
    engine = load_engine(BUNDLED_CHECKPOINT, options)
    try:
        return {
            name: list(_direct(engine, requests, words, picture=picture))[_WARM:]
            for name, picture in (("text", False), ("picture", True))
        }
    finally:
        engine.close()


def _direct(engine: Engine, requests: int, words: int, *, picture: bool) -> Iterator[float]:
    size = engine.info.image_size
    for number in range(requests + _WARM):
        media, mark = None, ""
        if picture:
            pixels = cut_tiles(open_image(_picture(number), MediaLimits()), max_tiles=1, tile=size)
            media, mark = Tiles(pixels=pixels, counts=(len(pixels),), digests=(f"{number}",)), "<image>\n"
        began = time.perf_counter()
        handle = engine.submit(
            EngineRequest(
                request_id=str(number),
                question=mark + _question(number),
                media=media,
                params=GenerationParams(max_new_tokens=words),
                priority=Priority.INTERACTIVE,
            )
        )
        pieces = handle.stream()
        next(pieces, "")
        yield time.perf_counter() - began
        for _ in pieces:
            pass


def _stages(database: Database, seen: Sequence[Chatted]) -> dict[str, list[float]]:
    ids = [chat.completion_id.removeprefix("chatcmpl-") for chat in seen]
    with database.begin() as conn:
        rows = [dict(row._mapping) for row in conn.exec_driver_sql(_STAGES, (ids,))]
    assert len(rows) == len(ids)
    return {name: [float(row[name]) for row in rows] for name in ("planned", "prepared", "claimed", "engine")}


def _body(number: int, *, picture: bool, words: int) -> dict[str, object]:
    content: list[dict[str, object]] = [{"type": "text", "text": _question(number)}]
    if picture:
        url = f"data:image/png;base64,{b64encode(_picture(number)).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": url, "detail": "low"}})
    return {"model": _MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": words}


def _question(number: int) -> str:
    return f"Read the text of page {number}, please."


def _picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (224, 224), (number % 256, number // 256, 99)).save(out, "PNG")
    return out.getvalue()


if __name__ == "__main__":
    bench("First text of a chat", measure, requests=40, words=24)
