"""Media for tests, made on the spot: pictures, PDFs written by hand, clips encoded by FFmpeg."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with structure on every scale, where each resampling mistake shows."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    mask = rng.integers(0, 2, (height // 32 + 1, width // 32 + 1), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    picked = np.where(mask[:height, :width, None] == 1, pixels, coarse[:height, :width])
    return Image.fromarray(picked)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pdf(pages: Sequence[tuple[float, float, bytes]], *, extra: Sequence[bytes] = (), trailer: bytes = b"") -> bytes:
    """A PDF of pages `(width, height, drawing operators)` in points; `extra` objects get the numbers behind."""
    kids = b" ".join(b"%d 0 R" % (3 + 2 * number) for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
    ]
    for number, (width, height, drawing) in enumerate(pages):
        box = b"[0 0 %.2f %.2f]" % (width, height)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox %s /Resources << >> /Contents %d 0 R >>" % (box, 4 + 2 * number)
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawing), drawing))
    objects.extend(extra)
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for offset in offsets:
        out += b"%010d 00000 n \n" % offset
    out += b"trailer\n<< /Size %d /Root 1 0 R %s >>\n" % (len(objects) + 1, trailer)
    out += b"startxref\n%d\n%%%%EOF\n" % start
    return bytes(out)


def black_square(left: float, bottom: float, side: float) -> bytes:
    return b"0 0 0 rg %.2f %.2f %.2f %.2f re f" % (left, bottom, side, side)


# PDF 1.7 (ISO 32000-1), 7.6.3.3: the padding of passwords.
_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def encrypted_pdf(password: bytes = b"secret") -> bytes:
    """A PDF that needs a password: the 40-bit RC4 handler (V 1, R 2), algorithms 2 to 4 of ISO 32000-1."""
    padded = (password + _PADDING)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    identity, permissions = b"0123456789abcdef", -4
    seed = padded + owner + permissions.to_bytes(4, "little", signed=True) + identity
    key = hashlib.md5(seed).digest()[:5]
    user = _rc4(key, _PADDING)
    handler = b"<< /Filter /Standard /V 1 /R 2 /P %d /O <%s> /U <%s> >>" % (
        permissions,
        owner.hex().encode(),
        user.hex().encode(),
    )
    ids = identity.hex().encode()
    return pdf([(100, 100, b"")], extra=[handler], trailer=b"/Encrypt 5 0 R /ID [<%s><%s>]" % (ids, ids))


def frame_at(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """A frame whose number can be read back: its bits are 16 grey columns, over a moving gradient."""
    ys, xs = np.mgrid[0:height, 0:width]
    frame = np.stack([(xs + 3 * index) % 256, (ys * 2) % 256, (xs + ys) % 256], -1).astype(np.uint8)
    for bit in range(16):
        left, right = bit * width // 16, (bit + 1) * width // 16
        frame[: height // 4, left:right] = 235 if index >> bit & 1 else 20
    return frame


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number that `frame_at` wrote."""
    height, width, _ = frame.shape
    number = 0
    for bit in range(16):
        middle = (2 * bit + 1) * width // 32
        number |= int(frame[height // 8, middle].mean() > 128) << bit
    return number


def clip(
    path: Path,
    frames: int,
    *,
    codec: str = "libx264",
    fps: int = 25,
    width: int = 320,
    height: int = 240,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode a numbered clip."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame_at(index, width, height), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
