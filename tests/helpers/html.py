"""HTML pages, read back."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

VOID = {"meta", "link", "img", "br", "hr", "input"}


HOSTILE = '<script>alert(1)</script> & "quoted" \' onerror="x"'


class Document(HTMLParser):
    """Everything a test asks of a document; fails on tags that do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(attribute))]


def linked(report: Path) -> set[Path]:
    """The other files that a report links to, which are there."""
    links = [str(link["href"]) for link in Document(report.read_text(encoding="utf-8")).all("a")]
    found = {report.parent / unquote(link) for link in links if not link.startswith("#")}
    assert all(path.is_file() for path in found), found
    return {path.resolve() for path in found}
