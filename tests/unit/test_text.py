"""Text as it can be sent and stored: the same where that is possible, escapes where it is not."""

from __future__ import annotations

import json
import logging
import os

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.observe import metrics
from deepflow.observe.text import CleanFormatter, clean, cleaned, to_json

ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.characters(categories=["Cs"]))
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
    max_leaves=20,
)


@given(ANY_TEXT)
def test_clean_text_can_be_sent_and_what_could_be_is_the_same(text: str) -> None:
    shown = clean(text)
    shown.encode()
    assert "\x00" not in shown
    if shown != text:
        assert "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text)
    assert clean(shown) == shown


@given(TREES)
def test_any_tree_becomes_json(tree: object) -> None:
    assert orjson.loads(to_json(tree)) == json.loads(json.dumps(cleaned(tree)))


def test_bytes_of_a_file_name_can_be_told_from_what_is_shown() -> None:
    before = metrics.value("deepflow_fallbacks_total", kind="unencodable_text")
    assert clean(os.fsdecode(b"caf\xe9.csv")) == "caf\\udce9.csv"
    assert metrics.value("deepflow_fallbacks_total", kind="unencodable_text") == before + 1
    text = "an ordinary text, wide: \N{SNAKE}"
    assert clean(text) is text
    assert metrics.value("deepflow_fallbacks_total", kind="unencodable_text") == before + 1


def test_what_json_has_no_word_for_is_refused() -> None:
    with pytest.raises(TypeError):
        to_json({"a": object()})


def test_a_log_line_is_clean_with_its_traceback_and_where_its_arguments_do_not_print() -> None:
    class Wordless:
        def __str__(self) -> str:
            raise ValueError("no words")

    formatter = CleanFormatter(logging.Formatter("%(message)s"))
    name = os.fsdecode(b"caf\xe9")
    try:
        raise FileNotFoundError(name)
    except FileNotFoundError as exc:
        info = (type(exc), exc, exc.__traceback__)
    record = logging.LogRecord("a", 20, "f", 1, "the file %s", (name,), info)
    line = formatter.format(record)
    assert line.startswith("the file caf\\udce9\n")
    assert "FileNotFoundError: caf\\udce9" in line
    line.encode()
    record = logging.LogRecord("a", 20, "f", 1, "the file %s", (Wordless(),), None)
    assert formatter.format(record).startswith("the file %s")
