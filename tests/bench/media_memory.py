"""Peak memory of a worker with its decoder children: a PDF of 5,000 pages, a clip of two hours.

`python -m tests.bench.media_memory [--json PATH] [--stride N]`. Each load runs in a process of its own; resident
memory of it and its children is sampled every 10 ms. `--stride 1` prepares every page.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipelines.media.isolate import Decoder
from pipelines.media.options import PrepareOptions
from pipelines.media.pack import encode
from tests.bench.media_report import Row, arguments, photo, report


def make_pdf(path: Path, pages: int) -> None:
    """Text pages; written by hand, for nothing among our packages writes PDF."""
    lines = b"".join(b"50 %d Td (The quick brown fox jumps over the lazy dog, page after page.) Tj -50 -%d Td " % (y, y)
                     for y in range(780, 40, -14))  # fmt: skip
    offsets: list[int] = []
    with path.open("wb") as out:

        def write(number: int, body: bytes) -> None:
            offsets.append(out.tell())
            out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))

        out.write(b"%PDF-1.4\n")
        kids = b" ".join(b"%d 0 R" % (4 + 2 * number) for number in range(pages))
        write(1, b"<< /Type /Catalog /Pages 2 0 R >>")
        write(2, b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, pages))
        write(3, b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
        for number in range(pages):
            text = b"BT /F1 11 Tf 1 0 0 1 0 0 Tm (%d) Tj %s ET" % (number, lines)
            write(4 + 2 * number, b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R "
                  b"/Resources << /Font << /F1 3 0 R >> >> >>" % (5 + 2 * number))  # fmt: skip
            write(5 + 2 * number, b"<< /Length %d >>\nstream\n%s\nendstream" % (len(text), text))
        start = out.tell()
        out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(offsets) + 1))
        out.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
        out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(offsets) + 1, start))


def make_clip(path: Path, seconds: int) -> None:
    """Ten seconds of 720p, repeated without encoding them again."""
    part = path.with_name("part.mp4")
    wide = np.asarray(photo(1280 * 2, 720))
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for index in range(250):
            pixels = np.ascontiguousarray(wide[:, index * 4 : index * 4 + 1280])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path), "w") as out, av.open(str(part)) as source:
        template = source.streams.video[0]
        target = out.add_stream_from_template(template)
        base = template.time_base or Fraction(1, 12800)
        for round_number in range(seconds // 10):
            source.seek(0)
            shift = round(round_number * 10 / base)
            for packet in source.demux(template):
                if packet.dts is None or packet.pts is None:
                    continue
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                out.mux(packet)


def pdf_load(path: Path, stride: int) -> None:
    """What a cpu worker does with a document: probe, then runs of pages, packed one by one."""
    with Decoder() as decoder:
        pages = decoder.probe(path).pages
        for outcome in decoder.prepare_pages(path, range(0, pages, stride), PrepareOptions()):
            if outcome.pack is None:
                raise RuntimeError("a page failed") from outcome.error
            encode(outcome.pack)


def clip_load(path: Path, reader: str) -> None:
    """What a cpu worker does with a clip."""
    with Decoder() as decoder:
        decoder.probe(path)
        encode(decoder.prepare_video(path, PrepareOptions(max_tiles=1, readers=(reader,))))


def _resident(pid: int) -> int:
    """Bytes of a process and all below it; shared pages count in each."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it ended
        return 0
    return int(fields[1]) * 4096 + sum(_resident(child) for child in children)


def measure(name: str, load: str, *values: str) -> Row:
    """Run one load in a process of its own."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.media_memory", load, *values])
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    status = process.wait()
    thread.join()
    if status != 0:
        raise RuntimeError(f"{name} failed")
    return {"load": name, "seconds": time.perf_counter() - started, "peak MB, worker and children": peak / 1e6}


LOADS: dict[str, Callable[[list[str]], None]] = {
    "pdf": lambda values: pdf_load(Path(values[0]), int(values[1])),
    "clip": lambda values: clip_load(Path(values[0]), values[1]),
}


def main() -> None:
    """Run, print, write."""
    if len(sys.argv) > 1 and sys.argv[1] in LOADS:
        LOADS[sys.argv[1]](sys.argv[2:])
        return
    parser = arguments("memory")
    parser.add_argument("--pages", type=int, default=5000)
    parser.add_argument("--stride", type=int, default=25, help="prepare every Nth page")
    parser.add_argument("--hours", type=float, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pdf, clip = Path(folder) / "long.pdf", Path(folder) / "long.mp4"
        make_pdf(pdf, options.pages)
        make_clip(clip, int(options.hours * 3600))
        size = f"{clip.stat().st_size / 1e6:.0f} MB"
        rows = [
            measure(f"PDF of {options.pages} pages, every {options.stride}th", "pdf", str(pdf), str(options.stride)),
            measure(f"clip of {options.hours:g} h, 720p, {size}, decord", "clip", str(clip), "decord"),
            measure(f"clip of {options.hours:g} h, 720p, {size}, PyAV", "clip", str(clip), "pyav"),
        ]
    report("Memory", rows, options.json)


if __name__ == "__main__":
    main()
