from __future__ import annotations

import json
import math
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.store.partitions import Partition, month_start
from pipelines.store.session import libpq_url, sqlalchemy_url
from pipelines.store.values import clean_text, to_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=())), inner),
    max_leaves=12,
)


@given(st.text(st.characters(exclude_categories=())))
def test_cleaned_text_can_be_stored_and_is_cleaned_once(value: str) -> None:
    cleaned = clean_text(value)
    assert "\x00" not in cleaned
    cleaned.encode()
    assert clean_text(cleaned) == cleaned


@given(st.text())
def test_ordinary_text_is_left_alone(value: str) -> None:
    assert clean_text(value) == value.replace("\x00", "\ufffd")


@given(JSON)
def test_json_is_always_something_that_jsonb_accepts(value: object) -> None:
    encoded = to_json(value)
    encoded.encode()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    def text_of(found: object) -> str:
        if isinstance(found, dict):
            return "".join(key + text_of(item) for key, item in found.items())
        if isinstance(found, list):
            return "".join(map(text_of, found))
        return found if isinstance(found, str) else ""

    assert "\x00" not in text_of(json.loads(encoded, parse_constant=refuse))


def test_a_backslash_before_u0000_is_no_nul() -> None:
    assert json.loads(to_json({"path": "C:\\u0000"})) == {"path": "C:\\u0000"}


def test_what_is_not_a_number_becomes_null() -> None:
    assert json.loads(to_json({"a": math.nan, "b": [math.inf, 1.5]})) == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_any_spelling_of_an_address_is_understood(scheme: str) -> None:
    url = f"{scheme}://user:p%40ss@host:5433/name?sslmode=require"
    assert sqlalchemy_url(url) == "postgresql+psycopg://user:p%40ss@host:5433/name?sslmode=require"
    assert libpq_url(url) == "postgresql://user:p%40ss@host:5433/name?sslmode=require"


def test_months_follow_each_other_over_the_year() -> None:
    at = datetime(2026, 11, 24, 3, tzinfo=UTC)
    assert [month_start(at, n).strftime("%Y-%m") for n in (-11, -1, 0, 1, 2)] == [
        "2025-12",
        "2026-10",
        "2026-11",
        "2026-12",
        "2027-01",
    ]


def test_a_partitions_end_is_the_time_of_its_upper_bound() -> None:
    end = datetime(2026, 12, 1, tzinfo=UTC)
    upper = uuid.UUID(int=int(end.timestamp() * 1000) << 80)
    assert Partition(table="items", name="items_202611", lower=uuid.UUID(int=0), upper=upper).end == end
