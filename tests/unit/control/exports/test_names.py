from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.blobs.base import check_key
from pipelines.control.exports.names import file_name, safe

NAMES = st.text(alphabet=st.characters(), max_size=300)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("scans/2026/page one.pdf", "scans_2026_page one.pdf"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("a\x00b\nc", "a_b_c"),
        ("Übersicht 報告.pdf", "Übersicht 報告.pdf"),
        ("https://host/a?b=c", "https___host_a_b=c"),
        ("C:\\x\\y", "C__x_y"),
        (".hidden", "hidden"),
        ("x" * 500, "x" * 120),
    ],
)
def test_a_name_becomes_one_safe_part(name: str, shown: str) -> None:
    assert safe(name) == shown


@given(NAMES)
def test_every_name_becomes_a_key_that_every_store_holds(name: str) -> None:
    made = safe(name)
    assert check_key(made) == made
    assert "/" not in made
    assert not made.startswith(".")
    assert 1 <= len(made.encode()) <= 120
    assert safe(made) == made


@given(st.lists(st.tuples(NAMES, st.integers(0, 9999)), min_size=2, max_size=20, unique_by=lambda pair: pair[1]))
def test_documents_of_the_same_name_never_share_a_file(documents: list[tuple[str, int]]) -> None:
    pages = [(doc, name, page) for name, doc in documents for page in (None, 0, 1)]
    made = [file_name(doc=doc, name=name, page=page, suffix=".md") for doc, name, page in pages]
    assert len(set(made)) == len(pages)


def test_pages_are_numbered_from_one() -> None:
    assert file_name(doc=12, name="a/b.pdf", page=2, suffix=".md") == "0000012-a_b.pdf/page-0003.md"
    assert file_name(doc=3, name="photo.png", page=None, suffix=".json") == "0000003-photo.png.json"
