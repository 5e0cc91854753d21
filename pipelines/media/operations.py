"""What a decoder child can do. Nothing here runs in a worker itself: `isolate` sends each call to a child."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.jobs.errors import InvalidParameter, MediaNotFound, MediaTooLarge, UnsupportedMedia
from pipelines.media import images, pages
from pipelines.media.blank import is_blank
from pipelines.media.frames import frame_indices, open_video, segments_at
from pipelines.media.limits import MediaLimits
from pipelines.media.options import Output, PrepareOptions
from pipelines.media.pack import EncodedPack, Pack, PackImage, TilePack
from pipelines.media.sniff import MediaType
from pipelines.media.wire import Buffer, pack_to_wire

Answer = tuple[dict[str, Any], Sequence[Buffer]]


class Session:
    """What a child keeps from one call to the next: the limits, and the document that is open."""

    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits
        self._opened: tuple[tuple[str, int, int], pages.PdfFile | pages.TiffFile] | None = None

    def document(self, path: Path, kind: MediaType) -> pages.PdfFile | pages.TiffFile:
        """The document, opened once for a run of its pages."""
        about = path.stat()
        identity = (str(path), about.st_size, about.st_mtime_ns)
        if self._opened is not None and self._opened[0] == identity:
            return self._opened[1]
        self.close()
        document = pages.open_document(path, kind, self.limits)
        self._opened = (identity, document)
        return document

    def close(self) -> None:
        """Close the open document, if there is one."""
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None


def probe(session: Session, request: dict[str, Any]) -> Answer:
    """`pages.probe`."""
    return asdict(pages.probe(Path(request["path"]), session.limits)), ()


def prepare_image(session: Session, request: dict[str, Any]) -> Answer:
    """One picture to a pack; of a TIFF or PDF, the first page."""
    return prepare_page(session, {**request, "page": 0})


def prepare_page(session: Session, request: dict[str, Any]) -> Answer:
    """One page (from 0) of a document to a pack. A picture is a document of one page."""
    path, options = Path(request["path"]), PrepareOptions.from_json(request["options"])
    page = int(request["page"])
    kind = pages.sniff_file(path)
    grey = options.output is Output.TILES
    if kind.is_document:
        picture = session.document(path, kind).render(page, dpi=options.dpi, keep_grey=grey)
        return pack_to_wire(pack_picture(picture, options, {"type": kind, "page": str(page)}))
    if not kind.is_image:
        raise UnsupportedMedia("This is a video; send it to a kind of job that takes videos.")
    if page != 0:
        raise MediaNotFound(f"A picture has one page; there is no page {page + 1}.")
    if path.stat().st_size > session.limits.image_bytes:
        raise MediaTooLarge(f"The image is larger than the accepted {session.limits.image_bytes:,} bytes.")
    data = path.read_bytes()
    picture = images.open_image(data, session.limits, keep_grey=grey)
    if options.output is Output.IMAGES and _can_pass(data, kind):
        return pack_to_wire(_encoded([(kind.value, data)], {"type": kind, **_about(picture)}))
    return pack_to_wire(pack_picture(picture, options, {"type": kind}))


def prepare_video(session: Session, request: dict[str, Any]) -> Answer:
    """The sampled frames of a video to a pack, one frame in memory at a time."""
    path, options = Path(request["path"]), PrepareOptions.from_json(request["options"])
    kind = pages.sniff_file(path)
    if not kind.is_video:
        raise UnsupportedMedia("This is not a video; send MP4, MOV, MKV, WebM or AVI.")
    if options.num_segments > session.limits.sampled_frames:
        raise InvalidParameter(f"num_segments may be at most {session.limits.sampled_frames}.", param="num_segments")
    session.close()
    with open_video(path, session.limits, readers=options.readers) as video:
        segments = options.num_segments
        if options.fps is not None:
            segments = segments_at(
                options.fps, frames=video.frames, fps=video.fps, bound=options.bound, most=options.num_segments
            )
        indices = frame_indices(frames=video.frames, fps=video.fps, num_segments=segments, bound=options.bound)
        seconds = ",".join(f"{index / video.fps:.3f}" for index in indices)
        meta = {"type": kind, "reader": type(video).__name__, "frames": str(video.frames), "seconds": seconds}
        stills = video.read(indices)
        if options.output is Output.IMAGES:
            jpegs = [("image/jpeg", _encode_picture(Image.fromarray(still), "JPEG")) for still in stills]
            return pack_to_wire(_encoded(jpegs, meta, video=True))
        each = images.tile_count(
            video.width, video.height, max_tiles=options.max_tiles, tile=options.tile, thumbnail=options.thumbnail
        )
        if each * len(indices) > session.limits.tiles:
            raise InvalidParameter(
                f"{len(indices)} frames of {each} tiles are more than {session.limits.tiles} tiles; lower "
                "num_segments or max_tiles.",
                param="num_segments",
            )
        tiles = np.empty((each * len(indices), options.tile, options.tile, 3), np.uint8)
        for position, still in enumerate(stills):
            tiles[position * each : (position + 1) * each] = images.cut_tiles(
                Image.fromarray(still), max_tiles=options.max_tiles, tile=options.tile, thumbnail=options.thumbnail
            )
        return pack_to_wire(TilePack.of(tiles, (each,) * len(indices), meta))


def pack_picture(picture: Image.Image, options: PrepareOptions, meta: dict[str, str]) -> Pack:
    """A decoded picture as the pack that the engine eats."""
    meta = {**meta, **_about(picture)}
    if options.output is Output.IMAGES:
        return _encoded([("image/png", _encode_picture(picture, "PNG"))], meta)
    columns, rows = images.target_grid(*picture.size, max_tiles=options.max_tiles, tile=options.tile)
    tiles = images.cut_tiles(picture, max_tiles=options.max_tiles, tile=options.tile, thumbnail=options.thumbnail)
    return TilePack.of(tiles, (len(tiles),), {**meta, "grid": f"{columns}x{rows}"})


def _about(picture: Image.Image) -> dict[str, str]:
    return {
        "width": str(picture.width),
        "height": str(picture.height),
        "blank": "yes" if is_blank(picture) else "no",
    }


def _can_pass(data: bytes, kind: MediaType) -> bool:
    """True for bytes that any server reads just as we do: upright, opaque, plain JPEG or PNG."""
    if kind not in {MediaType.JPEG, MediaType.PNG}:
        return False
    with images.reading("image"), Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
        plain = image.mode in {"L", "RGB"} and not image.has_transparency_data
        upright = images.orientation_of(image) == 1
    return plain and upright


def _encode_picture(picture: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    if form == "PNG":
        picture.save(out, "PNG", compress_level=1)
    else:
        picture.save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def _encoded(pictures: Sequence[tuple[str, bytes]], meta: dict[str, str], *, video: bool = False) -> EncodedPack:
    return EncodedPack(
        images=tuple(
            PackImage(mime=mime, data=data, digest=hashlib.sha256(data).hexdigest()) for mime, data in pictures
        ),
        video=video,
        meta=meta,
    )


Operation = Callable[[Session, dict[str, Any]], Answer]

OPERATIONS: dict[str, Operation] = {
    "probe": probe,
    "prepare_image": prepare_image,
    "prepare_page": prepare_page,
    "prepare_video": prepare_video,
}
