"""Text that comes from data (names of classes, files, backbones), made safe for each kind of output.

HTML is escaped by the template of reports; JSON and YAML escape what they write.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

# control characters, and halves of pairs, by which Python keeps the bytes of names that are not UTF-8
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# what a spreadsheet runs as a formula, with the quotation marks that already guard it
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
# what begins with the sound of a vowel: a letter, or the name of one where letters are spelt, as in LMS
_VOWEL = re.compile(r"[aeioAEIO]|[FHLMNRSX][A-Z0-9]|mlp$|mae$")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#])")


def visible(text: str) -> str:
    """Return `text` with its invisible characters escaped; ends of lines and tabulators stay."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: object) -> str:
    """Return `text` on one line, with its invisible characters escaped."""
    return visible(" ".join(str(text).split()))


def a(noun: str) -> str:
    """Return a noun with its article, a or an, by the first sound: "an mlp" is spelt, "a linear" is not."""
    return f"{'an' if _VOWEL.match(noun) else 'a'} {noun}"


def markdown(text: object) -> str:
    """Return `text` as plain words of one line of Markdown, also in a table."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def markdown_code(text: object) -> str:
    """Return `text` as code in one line of Markdown, also in a table."""
    line = one_line(text).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV. A quotation mark guards words that a spreadsheet would run as a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_guarded(value) for value in row] for row in rows)
    return text.getvalue()


def unguarded(row: Mapping[str, str]) -> dict[str, str]:
    """Return a row of `csv_text` without the quotation marks that guard its words."""
    return {name: _unguarded(value) for name, value in row.items()}


def on_disk(text: str) -> str:
    """Return `text` as a text file gives it back: halves of pairs are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _guarded(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) and not _number(value) else value


def _unguarded(value: str) -> str:
    return value[1:] if value.startswith("'") and _FORMULA.match(value) else value


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
