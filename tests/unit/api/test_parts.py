"""The api's pure parts: negotiation, Markdown, forms, JSON, keys, the command line's sources and configuration."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from api.cli.config import resolve
from api.cli.exits import ExitCode, of_job
from api.cli.sources import source_of
from api.client.errors import ConfigurationError
from api.errors import UnreadableBody
from api.idempotency import fingerprint_of, parse
from api.jsonbody import loads
from api.multipart import MultipartStream
from api.negotiation import best
from pipelines.control.markdown import escaped
from pipelines.jobs.errors import InvalidParameter

OFFERS = ("application/x-ndjson", "application/json", "text/markdown")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("*/*", "application/x-ndjson"),
        ("text/markdown", "text/markdown"),
        ("text/*", "text/markdown"),
        ("application/json;q=0.5, text/markdown;q=0.9", "text/markdown"),
        ("text/markdown;q=0.1, */*;q=0.5", "application/x-ndjson"),
        ("TEXT/MARKDOWN ; q=1", "text/markdown"),
        ("image/png", None),
        ("*/*;q=0", None),
        ("text/markdown;q=x", None),
        ("", None),
    ],
)
def test_the_most_liked_media_type_is_chosen(accept: str, chosen: str | None) -> None:
    assert best(accept, OFFERS) == chosen


@given(st.text())
def test_any_accept_header_is_survived(accept: str) -> None:
    assert best(accept, OFFERS) in {None, *OFFERS}


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**30), 10**30)
        | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.just("k") | st.just("l"), inner, max_size=2),
    )
)
def test_storable_json_is_read_as_it_is(value: Any) -> None:
    assert loads(json.dumps(value).encode()) == value


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '"\\u0000"', '{"\\u0000": 1}', '"\\udc00"', "1e999"])
def test_json_that_no_database_holds_is_refused(text: str) -> None:
    with pytest.raises(UnreadableBody):
        loads(text.encode())


@given(st.text())
def test_escaped_names_stay_on_one_line_and_start_nothing(text: str) -> None:
    shown = escaped(text)
    assert "\n" not in shown
    assert not shown.startswith(("#", ">", "*", "_", "`", "|", "["))


def test_idempotency_keys_are_quoted_or_bare() -> None:
    assert parse('"abc"') == parse("abc") == "abc"
    for bad in ("", '""', "a b", "é", "x" * 256):
        with pytest.raises(InvalidParameter):
            parse(bad)


def test_a_fingerprint_ignores_the_order_of_fields_and_nothing_else() -> None:
    one = fingerprint_of("POST", "/v1/jobs", {"a": 1, "b": [1, 2]})
    assert one == fingerprint_of("POST", "/v1/jobs", {"b": [1, 2], "a": 1})
    assert one != fingerprint_of("POST", "/v1/jobs", {"a": 1, "b": [2, 1]})
    assert one != fingerprint_of("POST", "/v1/other", {"a": 1, "b": [1, 2]})


@given(
    content=st.binary(max_size=400),
    before=st.booleans(),
    cuts=st.lists(st.integers(0, 800), max_size=8),
)
def test_a_form_is_read_alike_however_it_is_cut(content: bytes, before: bool, cuts: list[int]) -> None:
    boundary = "BoUnDaRyThatIsNotInside"
    file = (
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode()
        + content
        + b"\r\n"
    )
    field = f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n'.encode()
    body = (field + file if before else file + field) + f"--{boundary}--\r\n".encode()
    edges = sorted({0, len(body), *(cut % len(body) for cut in cuts)})
    chunks: Iterator[bytes] = iter([body[start:end] for start, end in itertools.pairwise(edges)])
    form = MultipartStream(f"multipart/form-data; boundary={boundary}", lambda: next(chunks, None))
    assert b"".join(form.file_pieces()) == content
    form.finish()
    assert (form.filename, form.media_type, form.fields) == ("a.png", "image/png", {"purpose": "vision"})


def test_words_on_the_command_line_become_sources(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"b")
    (tmp_path / "a.pdf").write_bytes(b"a")
    (tmp_path / ".hidden").write_bytes(b"h")
    uploaded: list[str] = []

    def upload(path: Path) -> str:
        uploaded.append(path.name)
        return f"file-{len(uploaded):032x}"

    def made(*words: str, manifest: bool = False) -> dict[str, Any]:
        return source_of(words, manifest=manifest, upload=upload)

    assert made() == {"type": "none"}
    assert made("s3://b/p/") == {"type": "prefix", "url": "s3://b/p/"}
    assert made("s3://b/**/*.png")["type"] == "prefix"
    assert made("s3://b/k.png", "https://x/y") == {
        "type": "media",
        "media": [{"url": "s3://b/k.png"}, {"url": "https://x/y"}],
    }
    entries = made(str(tmp_path))["media"]
    assert uploaded == ["a.pdf", "b.png"]
    assert [Path(entry["id"]).name for entry in entries] == ["a.pdf", "b.png"]
    assert made("s3://b/list.csv", manifest=True) == {"type": "manifest", "url": "s3://b/list.csv", "format": "csv"}
    for words, manifest in [(["s3://b/p/", "s3://b/k"], False), (["nowhere.png"], False), (["list.txt"], True)]:
        with pytest.raises(typer.BadParameter):
            made(*words, manifest=manifest)


def test_flags_beat_the_environment_beats_the_file_beats_the_defaults(tmp_path: Path) -> None:
    home = tmp_path / "config"
    (home / "batchsight").mkdir(parents=True)
    config = home / "batchsight" / "config.toml"
    work = tmp_path / "work"
    work.mkdir()
    environment = {"XDG_CONFIG_HOME": str(home)}

    def found(url: str | None = None, **more: str) -> tuple[str, str | None]:
        target = resolve(url=url, api_key=None, environment={**environment, **more}, folder=work)
        return target.url, target.api_key

    assert found() == ("http://127.0.0.1:8080", None)
    config.write_text('url = "http://user"\napi_key = "bs_user"\n')
    assert found() == ("http://user", "bs_user")
    (work / ".env").write_text("BATCHSIGHT_URL=http://dotenv\n")
    assert found() == ("http://dotenv", "bs_user")
    assert found(BATCHSIGHT_URL="http://environment") == ("http://environment", "bs_user")
    assert found("http://flag", BATCHSIGHT_URL="http://environment") == ("http://flag", "bs_user")
    config.write_text("url = ")
    with pytest.raises(ConfigurationError, match=r"config\.toml"):
        found()


def test_exit_codes_tell_how_a_job_ended() -> None:
    assert [of_job(state) for state in ("succeeded", "partial", "failed", "cancelled")] == [
        ExitCode.OK,
        ExitCode.PARTIAL,
        ExitCode.JOB_FAILED,
        ExitCode.JOB_FAILED,
    ]
