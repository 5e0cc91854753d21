"""INFER answers exactly as `batch_chat` does for the same request, on the real engine in float64."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np
import pytest

from deploy.demo.random_checkpoint import write_random_checkpoint
from pipelines.engine.chat import ChatModel
from pipelines.engine.load import load_engine
from pipelines.engine.options import EngineOptions
from pipelines.engine.service import LocalEngine
from pipelines.engine.types import Tiles
from pipelines.jobs.models import ClaimedItem, Document, JobPriority, JobSpec, PackRef
from pipelines.jobs.outcomes import Succeeded
from pipelines.kinds import registry
from pipelines.kinds.base import MediaClass, MediumView
from pipelines.steps.abort import Abort
from pipelines.steps.infer import InferTools, LoadedPack, infer

GENERATION = {"max_new_tokens": 12}
QUESTIONS = ["What moves?", "Which way does it move?", "What colour is it?"]
FRAMES = 4


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(folder, seed=11)
    loaded = load_engine(folder, EngineOptions(dtype="float64", device="cpu", threads=1))
    yield loaded
    loaded.close()


class Shelf:
    """The same video for every item."""

    def __init__(self, size: int) -> None:
        self.pixels = np.random.default_rng(3).integers(0, 256, (FRAMES, size, size, 3), dtype=np.uint8)

    def load(self, pack: PackRef) -> LoadedPack:
        digests = tuple(f"frame-{number}" for number in range(FRAMES))
        return LoadedPack(
            media=Tiles(pixels=self.pixels, counts=(1,) * FRAMES, digests=digests),
            views=(MediumView(media_class=MediaClass.VIDEO, images=FRAMES),),
        )


def test_infer_answers_as_batch_chat_does(engine: LocalEngine) -> None:
    shelf = Shelf(engine.info.image_size)
    job, tenant = uuid.UUID(int=1), uuid.UUID(int=2)
    spec = JobSpec(
        job_id=job,
        tenant_id=tenant,
        kind="video_qa",
        parameters=registry.get("video_qa").validate({"questions": QUESTIONS, "generation": GENERATION}),
        source={},
        priority=JobPriority.NORMAL,
    )
    item = ClaimedItem(
        job_id=job,
        seq=0,
        attempt=1,
        losses=0,
        fails=0,
        page=None,
        document=Document(job_id=job, doc=0, name="clip", media=()),
        pack=PackRef(key="k", sha256="s", size=1, tiles=FRAMES),
        media_hash="h",
    )
    tools = InferTools(engine=engine, packs=shelf, worker="w", preprocessing_version="1")
    outcome = infer(item, spec, tools, abort=Abort())
    assert isinstance(outcome, Succeeded)
    answers = [pair["answer"] for pair in outcome.result.output["answers"]]

    prefix = "".join(f"Frame{number + 1}: <image>\n" for number in range(FRAMES))
    expected = ChatModel(engine).batch_chat(
        None,
        np.concatenate([shelf.pixels] * len(QUESTIONS)),
        [prefix + question for question in QUESTIONS],
        GENERATION,
        num_patches_list=[[1] * FRAMES] * len(QUESTIONS),
    )
    assert answers == expected
    assert len(set(answers)) == len(QUESTIONS), "different questions, different answers: the comparison means something"
