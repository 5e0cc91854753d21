"""How much of somebody else's bytes a worker will look at. Settings are read at the edges and passed in as these."""

from __future__ import annotations

from dataclasses import dataclass

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Bounds on media and on the processes that decode them. Sizes in bytes, times in seconds."""

    image_bytes: int = 50 * MiB
    document_bytes: int = 2 * GiB  # a PDF or TIFF as a whole; each of its pages is bounded by `pixels`
    video_bytes: int = 2 * GiB
    pixels: int = 64_000_000  # of one image or rendered page; checked before decoding
    pages: int = 5_000
    video_seconds: float = 4 * 3600
    video_side: int = 8192  # pixels, width and height
    video_fps: float = 240
    sampled_frames: int = 2_048
    tiles: int = 512  # of one pack, 300 MB; a context of 32,768 tokens holds 128 tiles of 256
    decode_wall_seconds: float = 120
    decode_cpu_seconds: int = 120  # of one call
    decode_memory_bytes: int = 1_400 * MiB  # address space of one decoder child
    decode_file_bytes: int = 64 * MiB  # largest file that a decoder child may write
    # A fresh child takes over after so many calls, or when this one keeps so much: leaks in native code stay small.
    calls_per_child: int = 2_000
    child_resident_bytes: int = 400 * MiB
    fetch_seconds: float = 60  # plus a second for each `fetch_bytes_per_second` of the size
    fetch_bytes_per_second: int = 5_000_000
    fetch_idle_seconds: float = 10

    def fetch_timeout(self, size: int) -> float:
        """Seconds that fetching `size` bytes may take in all."""
        return self.fetch_seconds + size / self.fetch_bytes_per_second
