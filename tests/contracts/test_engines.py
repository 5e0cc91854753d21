"""The conformance suite over every engine of the project."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.demo.random_checkpoint import write_random_checkpoint
from pipelines.engine.fake import FakeEngine, FakeOptions
from pipelines.engine.load import load_engine
from pipelines.engine.options import EngineOptions
from pipelines.engine.remote import RemoteEngine, RemoteOptions
from pipelines.engine.types import Accepts, EncodedImage, EncodedImages, Engine, Tiles
from tests.contracts.engine_contract import EngineContract
from tests.contracts.openai_server import serve


def tile_media(number: int, size: int) -> Tiles:
    draw = np.random.default_rng(number)
    count = 1 + number % 3
    pixels = draw.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Tiles(pixels=pixels, counts=(count,), digests=(f"picture-{number}",))


def image_media(number: int) -> EncodedImages:
    return EncodedImages(images=(EncodedImage(mime="image/png", data=b"picture %d" % number, digest=str(number)),))


class TestFakeEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[Engine]:
        engine = FakeEngine()
        yield engine
        engine.close()

    @pytest.fixture
    def slow(self) -> Callable[[], Engine]:
        return lambda: FakeEngine(FakeOptions(seconds=0.2, slots=4))

    @pytest.fixture
    def media(self) -> Callable[[int], Tiles]:
        return lambda number: tile_media(number, 448)

    @pytest.fixture
    def other_media(self) -> EncodedImages:
        return image_media(1)


class TestFakeEngineOverImages(TestFakeEngine):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[Engine]:
        engine = FakeEngine(FakeOptions(accepts=Accepts.IMAGES))
        yield engine
        engine.close()

    @pytest.fixture
    def slow(self) -> Callable[[], Engine]:
        return lambda: FakeEngine(FakeOptions(seconds=0.2, slots=4, accepts=Accepts.IMAGES))

    @pytest.fixture
    def media(self) -> Callable[[int], EncodedImages]:
        return image_media

    @pytest.fixture
    def other_media(self) -> Tiles:
        return tile_media(1, 448)


class TestLocalEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("local") / "tiny"
        write_random_checkpoint(folder, seed=3)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, folder: Path) -> Iterator[Engine]:
        engine = load_engine(folder, EngineOptions(dtype="float64", max_slots=6, page_size=8, guard=False, threads=1))
        yield engine
        engine.close()

    @pytest.fixture
    def slow(self, folder: Path) -> Callable[[], Engine]:
        return lambda: load_engine(folder, EngineOptions(dtype="float64", max_slots=2, guard=False, threads=1))

    @pytest.fixture
    def media(self) -> Callable[[int], Tiles]:
        return lambda number: tile_media(number, 56)

    @pytest.fixture
    def other_media(self) -> EncodedImages:
        return image_media(1)


class TestRemoteEngine(EngineContract):
    """Over a real HTTP server in front of the fake."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[Engine]:
        behind = FakeEngine(FakeOptions(accepts=Accepts.IMAGES))
        with serve(behind) as server:
            engine = RemoteEngine(RemoteOptions(url=server.url, slots=8, continues=True))
            yield engine
            engine.close()
        behind.close()

    @pytest.fixture
    def slow(self) -> Iterator[Callable[[], Engine]]:
        behind = FakeEngine(FakeOptions(seconds=0.2, slots=4, accepts=Accepts.IMAGES))
        with serve(behind) as server:
            yield lambda: RemoteEngine(RemoteOptions(url=server.url + "/v1/", slots=4))
        behind.close()

    @pytest.fixture
    def media(self) -> Callable[[int], EncodedImages]:
        return image_media

    @pytest.fixture
    def other_media(self) -> Tiles:
        return tile_media(1, 448)
