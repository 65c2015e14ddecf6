"""Parses a page as far as the tests look at it."""

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """What a browser would see: text, the attributes of every tag, and the exact figures."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data):
        inside = self.tags[-1][0] if self.tags else ""
        if inside not in ("style", "script"):
            self.text += data
            if self.rows and self.rows[-1] and data.strip():
                self.rows[-1][-1] += data.strip()

    @property
    def numbers(self) -> list[float]:
        return [float(attributes["value"]) for tag, attributes in self.tags if tag == "data"]
