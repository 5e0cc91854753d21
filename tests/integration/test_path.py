"""The path of a job through real servers, step by step, without the queue between: what a worker does with its ids."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import SecretStr
from sqlalchemy import text

import deploy.demo
from deploy.demo.documents import Style, draw_lines
from deploy.demo.scoring import character_error_rate
from deploy.local.servers import ObjectStore
from pipelines.engine.fake import FakeEngine
from pipelines.engine.load import load_engine
from pipelines.engine.options import EngineOptions
from pipelines.jobs.ids import uuid7
from pipelines.kinds import registry
from pipelines.settings import Settings
from pipelines.store import jobs, tenants
from pipelines.store.session import Database
from workers.cpu_runtime import CpuRuntime
from workers.gpu_runtime import GpuRuntime
from workers.wiring import cpu_runtime, gpu_runtime


class World:
    """A tenant, a bucket, the two runtimes."""

    def __init__(self, settings: Settings, database: Database, s3: Any, bucket: str) -> None:
        self.settings, self.database, self.s3, self.bucket = settings, database, s3, bucket
        self.cpu: CpuRuntime = cpu_runtime(settings)
        self.engine = FakeEngine()
        self.gpu: GpuRuntime = gpu_runtime(settings, self.engine)
        with database.begin() as conn:
            self.tenant = tenants.create_tenant(conn, "t").tenant_id

    def close(self) -> None:
        self.cpu.close()
        self.gpu.close()
        self.engine.close()

    def submit(self, kind: str, source: dict[str, Any], **parameters: Any) -> uuid.UUID:
        new = jobs.NewJob(
            job_id=uuid7(),
            tenant_id=self.tenant,
            kind=kind,
            parameters=registry.get(kind).validate(parameters),
            source=source,
        )
        with self.database.begin() as conn:
            jobs.insert_job(conn, new)
        return new.job_id

    def rows(self, job_id: uuid.UUID, columns: str = "seq, doc, page, state, error_code") -> list[Any]:
        with self.database.begin() as conn:
            query = text(f"SELECT {columns} FROM items WHERE job_id = :job ORDER BY seq")
            return [tuple(row) for row in conn.execute(query, {"job": job_id})]

    def results(self, job_id: uuid.UUID) -> list[Any]:
        with self.database.begin() as conn:
            query = text(
                "SELECT seq, text, output, flags, attempt, media_hash, mean_logprob, tiles, prompt_tokens,"
                " completion_tokens, provenance FROM results WHERE job_id = :job ORDER BY seq"
            )
            return list(conn.execute(query, {"job": job_id}))

    def waiting_documents(self, job_id: uuid.UUID) -> list[int]:
        with self.database.begin() as conn:
            query = text("SELECT doc FROM documents WHERE job_id = :job AND state = 'pending' ORDER BY doc")
            return list(conn.execute(query, {"job": job_id}).scalars())

    def run(self, job_id: uuid.UUID) -> None:
        """Do by hand what the dispatcher would send."""
        self.cpu.plan(job_id)
        self.cpu.paginate(job_id, self.waiting_documents(job_id))
        self.cpu.prepare(job_id, [row[0] for row in self.rows(job_id) if row[3] == "pending"])
        for row in self.rows(job_id):
            if row[3] == "ready":
                self.gpu.infer(job_id, row[0], solo=False)

    def put(self, key: str, path: Path) -> None:
        self.s3.upload_file(str(path), self.bucket, key)


@pytest.fixture(params=[0, 32 * 1024], ids=["packs as blobs", "packs in rows"])
def world(
    request: pytest.FixtureRequest,
    database: Database,
    redis_url: str,
    object_store_server: ObjectStore,
    bucket: str,
    s3: Any,
    tmp_path: Path,
) -> Iterator[World]:
    settings = Settings(
        database_url=database.url,
        redis_url=redis_url,
        s3_endpoint_url=object_store_server.endpoint,
        s3_access_key_id=object_store_server.access_key,
        s3_secret_access_key=SecretStr(object_store_server.secret_key),
        blob_url=f"s3://{bucket}/blobs",
        allowed_buckets=(f"{bucket}/in/",),
        scratch_dir=tmp_path / "scratch",
        inline_pack_bytes=request.param,
    )
    built = World(settings, database, s3, bucket)
    yield built
    built.close()


def marked(colour: str, size: tuple[int, int] = (448, 448)) -> Image.Image:
    """A picture that is not blank."""
    image = Image.new("RGB", size, colour)
    ImageDraw.Draw(image).line((100, 100, 200, 200), fill="grey", width=8)
    return image


def picture(path: Path, colour: str, size: tuple[int, int] = (448, 448)) -> Path:
    marked(colour, size).save(path)
    return path


def document(path: Path, colours: list[str]) -> Path:
    first, *rest = [marked(colour) for colour in colours]
    first.save(path, save_all=True, append_images=rest)
    return path


def test_a_prefix_of_mixed_files_becomes_results(world: World, tmp_path: Path) -> None:
    world.put("in/a.png", picture(tmp_path / "a.png", "red"))
    world.put("in/b.pdf", document(tmp_path / "b.pdf", ["red", "green", "blue"]))
    world.put("in/c.tiff", document(tmp_path / "c.tiff", ["black", "white"]))
    world.put("in/notes.txt", tmp_path / "a.png")
    job = world.submit("ocr", {"type": "prefix", "url": f"s3://{world.bucket}/in/"})
    world.run(job)
    assert [row[1:4] for row in world.rows(job)] == [
        (0, None, "succeeded"),
        (1, 0, "succeeded"),
        (1, 1, "succeeded"),
        (1, 2, "succeeded"),
        (2, 0, "succeeded"),
        (2, 1, "succeeded"),
    ]
    hashes = [row.media_hash for row in world.results(job)]
    assert len(set(hashes)) == 6
    assert all(row.media_hash in row.text for row in world.results(job)), "each answer is about its own medium"


def test_one_bad_item_never_hurts_its_neighbours(world: World, tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png", "red")
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    world.put("in/good.png", good)
    world.put("in/bad.png", bad)
    media = [
        {"url": f"s3://{world.bucket}/in/{name}"} for name in ("bad.png", "good.png", "missing.png", "../../etc/passwd")
    ]
    media.append({"url": "s3://somebody-elses/secret.png"})
    media.append({"url": "https://example.com/a.png"})
    job = world.submit("ocr", {"type": "media", "media": media})
    world.run(job)
    assert [row[3:] for row in world.rows(job)] == [
        ("failed", "corrupt_media"),
        ("succeeded", None),
        ("failed", "media_not_found"),
        ("failed", "invalid_parameter"),
        ("failed", "source_forbidden"),
        ("failed", "source_disabled"),
    ]


def test_the_same_page_asked_twice_is_cut_once(world: World, tmp_path: Path) -> None:
    world.put("in/a.png", picture(tmp_path / "a.png", "red"))
    source = {"type": "media", "media": [{"url": f"s3://{world.bucket}/in/a.png"}]}
    first, second = world.submit("ocr", source), world.submit("ocr", source)
    other = world.submit("ocr", source, max_tiles=1)
    for job in (first, second, other):
        world.run(job)
    keys = [world.rows(job, "pack_key")[0] for job in (first, second, other)]
    assert keys[0] == keys[1] != keys[2]
    with world.database.begin() as conn:
        assert conn.execute(text("SELECT count(*) FROM packs")).scalar_one() == 2


def test_a_damaged_pack_is_prepared_again_and_the_item_still_succeeds(world: World, tmp_path: Path) -> None:
    world.put("in/a.png", picture(tmp_path / "a.png", "red"))
    job = world.submit("ocr", {"type": "media", "media": [{"url": f"s3://{world.bucket}/in/a.png"}]})
    world.cpu.plan(job)
    world.cpu.prepare(job, [0])
    ((key,),) = world.rows(job, "pack_key")
    with world.database.begin() as conn:
        damaged = conn.execute(text("UPDATE packs SET data = 'not a pack' WHERE data IS NOT NULL")).rowcount
    if not damaged:
        world.s3.put_object(Bucket=world.bucket, Key=f"blobs/{key}", Body=b"not a pack")
    world.gpu.infer(job, 0, solo=False)
    assert world.rows(job, "state, fails") == [("pending", 0)]
    with world.database.begin() as conn:
        conn.execute(text("UPDATE items SET available_at = now()"))  # the pause before a repair
    world.cpu.prepare(job, [0])
    world.gpu.infer(job, 0, solo=False)
    assert world.rows(job, "state") == [("succeeded",)]


def test_a_file_that_changes_after_it_was_listed_is_refused(world: World, tmp_path: Path) -> None:
    world.put("in/a.png", picture(tmp_path / "a.png", "red"))
    job = world.submit("ocr", {"type": "prefix", "url": f"s3://{world.bucket}/in/"})
    world.cpu.plan(job)
    world.put("in/a.png", picture(tmp_path / "b.png", "green", (300, 300)))
    world.cpu.prepare(job, [0])
    assert world.rows(job, "state, error_code") == [("failed", "media_changed")]


def test_repeated_and_late_messages_change_nothing(world: World, tmp_path: Path) -> None:
    world.put("in/a.png", picture(tmp_path / "a.png", "red"))
    job = world.submit("ocr", {"type": "media", "media": [{"url": f"s3://{world.bucket}/in/a.png"}]})
    for _ in range(2):
        world.cpu.plan(job)
        world.cpu.prepare(job, [0])
        world.gpu.infer(job, 0, solo=False)
    world.cpu.paginate(job, [0])
    (result,) = world.results(job)
    assert result.attempt == 2, "one attempt to prepare, one to infer"


def test_a_manifest_line_that_is_wrong_fails_alone_and_overrides_apply(world: World, tmp_path: Path) -> None:
    world.put("in/a.png", picture(tmp_path / "a.png", "red"))
    url = f"s3://{world.bucket}/in/a.png"
    one = '{"max_new_tokens": 1}'
    inline = "\n".join(
        [
            f'{{"url": "{url}", "id": "one", "overrides": {{"max_continuations": 0, "generation": {one}}}}}',
            "not json",
            f'{{"url": "{url}", "id": "three", "overrides": {{"max_tiles": 99}}}}',
            f'{{"url": "{url}", "id": "four"}}',
        ]
    )
    job = world.submit("ocr", {"type": "manifest", "format": "jsonl", "inline": inline})
    world.run(job)
    assert [row[3:] for row in world.rows(job)] == [
        ("succeeded", None),
        ("failed", "invalid_parameter"),
        ("failed", "invalid_parameter"),
        ("succeeded", None),
    ]
    first, last = world.results(job)
    assert len(first.text.split()) == 1
    assert len(last.text.split()) > 1


def test_text_alone_is_a_job_too(world: World) -> None:
    job = world.submit("chat", {"type": "none"}, messages=[{"role": "user", "content": "hello"}])
    world.run(job)
    assert world.rows(job, "state") == [("succeeded",)]
    assert "media" in world.results(job)[0].text


def test_several_images_in_one_chat_reach_the_engine_together(world: World, tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "green")):
        world.put(f"in/{name}", picture(tmp_path / name, colour))
    media = [{"url": f"s3://{world.bucket}/in/{name}"} for name in ("a.png", "b.png")]
    job = world.submit(
        "chat", {"type": "media", "media": media}, messages=[{"role": "user", "content": "What differs?"}]
    )
    world.run(job)
    assert world.rows(job, "state, tiles") == [("succeeded", 2)]
    assert "tiles 2" in world.results(job)[0].text


LETTER = ["The committee met on", "Monday to discuss the", "new station. Total: 418", "Please reply by June 12"]


def scanned(path: Path) -> str:
    """Four pages at 144 dpi: one upright, one blank but for noise, one on its side, one on its head. The text."""
    page = draw_lines(LETTER, style=Style(size=36, line_height=56))
    noise = np.random.default_rng(3).normal(250, 3, (448, 448)).clip(0, 255).astype(np.uint8)
    blank = Image.fromarray(noise).convert("RGB")
    pages = [page.image, blank, page.image.rotate(-90), page.image.rotate(180)]
    pages[0].save(path, save_all=True, append_images=pages[1:], resolution=144, quality=95)
    return page.text


def test_a_scanned_document_is_read_upright_and_its_blank_page_is_not_asked_about(world: World, tmp_path: Path) -> None:
    """With the bundled checkpoint, whose own confidence decides: it reads this page with some wrong letters."""
    expected = scanned(tmp_path / "scan.pdf")
    world.put("in/scan.pdf", tmp_path / "scan.pdf")
    engine = load_engine(Path(deploy.demo.__path__[0]) / "checkpoint", EngineOptions(device="cpu", threads=1))
    world.gpu.close()
    world.gpu = gpu_runtime(world.settings, engine)
    job = world.submit("ocr", {"type": "prefix", "url": f"s3://{world.bucket}/in/"})
    try:
        world.run(job)
    finally:
        engine.close()
    upright, blank, side, head = world.results(job)
    assert (upright.flags, upright.provenance["requests"]) == ([], 1)
    assert (blank.text, blank.flags, blank.prompt_tokens, blank.completion_tokens, blank.tiles) == (
        "",
        ["blank"],
        0,
        0,
        0,
    )
    for page, rotation in ((side, 270), (head, 180)):
        assert page.flags == ["rotated"]
        assert page.output == {"format": "text", "rotation": rotation}
        assert page.provenance["requests"] == 4
        assert page.completion_tokens > upright.completion_tokens
    for page in (upright, side, head):
        assert page.mean_logprob > -0.4
        assert character_error_rate(page.text, expected) < 0.4
