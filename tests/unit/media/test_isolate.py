"""Decoding in children: what hostile bytes can do to a child, and that they do it to nobody else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipelines.jobs.errors import (
    CorruptMedia,
    DecoderCrashed,
    DecoderOutOfMemory,
    DecodeTimedOut,
    EncryptedDocument,
    InternalError,
    InvalidParameter,
    MediaNotFound,
    MediaTooLarge,
    RetryClass,
    UnsupportedMedia,
)
from pipelines.media.images import cut_tiles
from pipelines.media.isolate import Decoder
from pipelines.media.limits import MediaLimits
from pipelines.media.options import Output, PrepareOptions
from pipelines.media.pack import EncodedPack, TilePack, decode, encode
from pipelines.media.sniff import MediaType
from tests.unit.media.processes import HOSTILE, children_of, hostile, sessions
from tests.unit.media.samples import black_square, encoded, encrypted_pdf, noise, number_of, pdf

OPTIONS = PrepareOptions(max_tiles=4, tile=56, dpi=72)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as decoder:
        yield decoder


@pytest.fixture
def victim() -> Iterator[Decoder]:
    limits = MediaLimits(decode_wall_seconds=3, decode_cpu_seconds=1, decode_memory_bytes=700 * 1024 * 1024)
    with Decoder(limits, operations=HOSTILE) as decoder:
        yield decoder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture"
    path.write_bytes(encoded(noise(300, 200), "PNG"))
    return path


# What it is for


def test_a_picture_becomes_the_same_tiles_as_without_a_child(decoder: Decoder, picture: Path) -> None:
    pack = decoder.prepare_image(picture, OPTIONS)
    assert isinstance(pack, TilePack)
    assert np.array_equal(pack.tiles, cut_tiles(noise(300, 200), max_tiles=4, tile=56))
    assert pack.counts == (len(pack.tiles),)
    back = decode(encode(pack))
    assert isinstance(back, TilePack)
    assert back.digests == pack.digests


def test_the_engine_that_tiles_by_itself_gets_the_picture(decoder: Decoder, tmp_path: Path, picture: Path) -> None:
    images = replace(OPTIONS, output=Output.IMAGES)
    passed = decoder.prepare_image(picture, images)
    assert isinstance(passed, EncodedPack)
    assert passed.images[0].data == picture.read_bytes()
    other = tmp_path / "turned"
    exif = Image.Exif()
    exif[0x0112] = 6
    other.write_bytes(encoded(noise(300, 200), "JPEG", exif=exif))
    redone = decoder.prepare_image(other, images)
    assert isinstance(redone, EncodedPack)
    assert redone.images[0].mime == "image/png"
    assert redone.images[0].data.startswith(b"\x89PNG")


@pytest.mark.parametrize("output", list(Output))
def test_a_pack_says_whether_its_picture_is_blank(decoder: Decoder, tmp_path: Path, output: Output) -> None:
    """For both kinds of engine; of tiles, their grid too."""
    options = replace(OPTIONS, output=output)
    page, written = Image.new("RGB", (600, 900), "white"), Image.new("RGB", (600, 900), "white")
    ImageDraw.Draw(written).line((100, 100, 300, 400), fill="black", width=6)
    for name, image, blank in (("page.png", page, "yes"), ("written.png", written, "no")):
        image.save(tmp_path / name)
        pack = decoder.prepare_image(tmp_path / name, options)
        assert pack.meta["blank"] == blank
        columns, _, rows = pack.meta.get("grid", "").partition("x")
        if isinstance(pack, TilePack):
            assert len(pack.tiles) == int(columns) * int(rows) + 1
        else:
            assert not columns


def test_pages_come_in_order_and_a_bad_one_costs_itself(decoder: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    pages = [(100.0, 100.0, black_square(0, 0, 10.0 * number)) for number in range(4)]
    path.write_bytes(pdf(pages).replace(b"5 0 R", b"0 0 R", 1))
    outcomes = list(decoder.prepare_pages(path, [3, 1, 0, 7], OPTIONS))
    assert [outcome.page for outcome in outcomes] == [3, 1, 0, 7]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), CorruptMedia, type(None), MediaNotFound]
    assert isinstance(outcomes[0].pack, TilePack)
    assert outcomes[0].pack.tiles.min() == 0
    assert outcomes[1].pack is None


def test_a_video_becomes_its_sampled_frames(decoder: Decoder, clips: Path) -> None:
    options = PrepareOptions(max_tiles=1, num_segments=8, tile=128)
    pack = decoder.prepare_video(clips / "h264.mp4", options)
    assert isinstance(pack, TilePack)
    assert pack.counts == (1,) * 8
    assert [number_of(tile) for tile in pack.tiles] == [5, 16, 27, 38, 49, 61, 72, 83]
    bounded = decoder.prepare_video(clips / "h264.mp4", replace(options, bound=(1.0, 2.0), output=Output.IMAGES))
    assert isinstance(bounded, EncodedPack)
    assert bounded.video
    assert {image.mime for image in bounded.images} == {"image/jpeg"}
    assert bounded.meta["seconds"].startswith("1.0")


def test_errors_arrive_as_what_they_are(decoder: Decoder, tmp_path: Path, clips: Path, picture: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(encrypted_pdf())
    with pytest.raises(EncryptedDocument):
        decoder.probe(path)
    path.write_bytes(b"hello")
    with pytest.raises(UnsupportedMedia):
        decoder.prepare_image(path, OPTIONS)
    with pytest.raises(UnsupportedMedia):
        decoder.prepare_video(picture, OPTIONS)
    with pytest.raises(UnsupportedMedia):
        decoder.prepare_image(clips / "h264.mp4", OPTIONS)
    with pytest.raises(InvalidParameter) as caught:
        decoder.prepare_video(clips / "h264.mp4", PrepareOptions(num_segments=2049))
    assert caught.value.param == "num_segments"
    with pytest.raises(InvalidParameter, match="max_tiles"):
        decoder.prepare_video(clips / "h264.mp4", PrepareOptions(num_segments=600, max_tiles=1))
    with pytest.raises(InternalError):
        decoder.probe(tmp_path / "missing")


def test_probe_goes_through_a_child_too(decoder: Decoder, picture: Path) -> None:
    info = decoder.probe(picture)
    assert (info.type, info.width) == (MediaType.PNG, 300)


@pytest.mark.parametrize(
    "values", [{"max_tiles": 0}, {"max_tiles": 41}, {"dpi": 35}, {"dpi": 601}, {"num_segments": 0}], ids=str
)
def test_options_are_checked_where_they_are_made(values: dict[str, int]) -> None:
    with pytest.raises(InvalidParameter) as caught:
        PrepareOptions(**values)  # type: ignore[arg-type]
    assert caught.value.param == next(iter(values))


def test_options_survive_the_pipe() -> None:
    for options in (OPTIONS, PrepareOptions(bound=(1.5, 2.0), readers=("pyav",), output=Output.IMAGES)):
        assert PrepareOptions.from_json(options.to_json()) == options


# What it is against


@pytest.mark.parametrize(
    ("deed", "error"),
    [
        ("segfault", DecoderCrashed),
        ("abort", DecoderCrashed),
        ("exit", DecoderCrashed),
        ("spin", DecodeTimedOut),
        ("memory-error", DecoderOutOfMemory),
        ("huge", DecoderOutOfMemory),
        ("creep", DecoderOutOfMemory),
        ("killed", DecoderOutOfMemory),
        ("defect", InternalError),
        ("garbage", DecoderCrashed),
        ("endless", DecoderCrashed),
        ("write-much", InternalError),
    ],
)
def test_a_hostile_file_fails_alone(
    victim: Decoder, tmp_path: Path, picture: Path, deed: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        victim.prepare_image(hostile(tmp_path, deed), OPTIONS)
    assert "secret" not in str(caught.value)
    assert isinstance(victim.prepare_image(picture, OPTIONS), TilePack)


@pytest.mark.parametrize("deed", ["hang", "deaf", "helper"])
def test_a_hanging_decoder_is_stopped_with_all_it_started(tmp_path: Path, picture: Path, deed: str) -> None:
    with Decoder(MediaLimits(decode_wall_seconds=0.7), operations=HOSTILE) as victim:
        others = children_of(os.getpid())
        victim.prepare_image(picture, OPTIONS)  # the child is up
        started = children_of(os.getpid()) - others
        assert started
        with pytest.raises(DecodeTimedOut):
            victim.prepare_image(hostile(tmp_path, deed), OPTIONS)
        deadline = time.monotonic() + 10
        while any(session in started for session in sessions()):  # each child leads a session of its own
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_native_code_prints_does_not_reach_the_answers(victim: Decoder, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMedia):
        victim.prepare_image(hostile(tmp_path, "chatter"), OPTIONS)


def test_a_page_that_crashes_the_decoder_costs_itself(victim: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"HOSTILE segfault 1 2\n" + pdf([(50, 50, b"")] * 4))
    outcomes = list(victim.prepare_pages(path, range(4), OPTIONS))
    kinds = [type(outcome.error) for outcome in outcomes]
    assert kinds == [type(None), DecoderCrashed, DecoderCrashed, type(None)]


def test_failures_of_decoders_are_not_retried() -> None:
    assert {error.retry for error in (DecoderCrashed, DecodeTimedOut, DecoderOutOfMemory)} == {RetryClass.PERMANENT}


def test_an_image_larger_than_memory_is_out_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "large"
    Image.new("RGB", (8000, 8000)).save(path, "PNG", compress_level=1)
    with Decoder(MediaLimits(decode_memory_bytes=300 * 1024 * 1024)) as small, pytest.raises(DecoderOutOfMemory):
        small.prepare_image(path, OPTIONS)


def test_the_largest_picture_allowed_fits_in_a_child(decoder: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "large"
    Image.new("LA", (8000, 8000), (0, 128)).save(path, "PNG", compress_level=1)
    pack = decoder.prepare_image(path, PrepareOptions(max_tiles=40))
    assert isinstance(pack, TilePack)
    assert set(np.unique(pack.tiles).tolist()) == {127}
    with pytest.raises(MediaTooLarge):
        decoder.prepare_image(_large(tmp_path), OPTIONS)


def _large(folder: Path) -> Path:
    path = folder / "too-large"
    Image.new("1", (8001, 8000)).save(path, "PNG")
    return path


def test_a_child_knows_nothing_of_its_parent(victim: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do not pass on")
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        seen = victim.probe(Path("/self"))
    finally:
        os.close(secret)
    assert seen.fps == 0, "only the variables that are set on purpose"
    assert seen.width <= 5, "the standard descriptors, the answers, and the listing itself"
    assert seen.height == 1, "no new privileges"
    assert seen.frames == 1, "a session of its own"
