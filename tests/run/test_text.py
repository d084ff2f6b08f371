"""Words from data as plain words of each output."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difflens.run.text import csv_text, markdown, markdown_code, on_disk, one_line, unguarded, visible

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"))


def test_invisible_characters_are_shown() -> None:
    assert visible("a\x1b[31m\udcff\u202eb\n\tc") == "a\\x1b[31m\\udcff\\u202eb\n\tc"
    assert one_line("a\n  b\r\nc\x07") == "a b c\\x07"


def test_markdown() -> None:
    assert markdown("a|b <i> [x](y) *z* 1") == r"a\|b \<i\> \[x\](y) \*z\* 1"
    assert markdown_code("a|b") == r"`a\|b`"
    assert markdown_code("a`b") == "`` a`b ``"


@pytest.mark.parametrize("word", ["=1+1", "+x", "-x", "@x", "\t=1", "'=1"])
def test_formulas_are_guarded(word: str) -> None:
    (row,) = csv.reader(io.StringIO(csv_text([[word, "-0.5", -0.5, "a=b"]])))
    assert row == [f"'{word}", "-0.5", "-0.5", "a=b"]


@given(st.lists(WORDS, min_size=1))
def test_csv_gives_words_back(words: list[str]) -> None:
    text = csv_text([["word", "number"], *([word, k] for k, word in enumerate(words))])
    rows = csv.DictReader(io.StringIO(text, newline=""))
    assert [unguarded(row)["word"] for row in rows] == words


def test_bytes_that_are_not_utf_8() -> None:
    assert on_disk("a\udcff") == "a\\udcff"
