"""The documents of the project, as tests read them: listings, commands and tables."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
"""What describes the program."""

STUDIES = sorted((ROOT / "experiments").glob("**/README.md"))
DOCUMENTS = [*PAGES, ROOT / "CHANGELOG.md", *STUDIES]
RUN = "python -m evopress.run"


def page(name: str) -> Path:
    return ROOT / "docs" / f"{name}.md"


def study(name: str) -> Path:
    return ROOT / "experiments" / name / "README.md"


def listings(text: str, language: str) -> list[str]:
    """The contents of all code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def command_lines(path: Path) -> list[str]:
    """Commands in a document, with continued lines joined and without comments.

    They stand in code blocks of the language `sh`; in documents without code blocks, in indented lines.
    """
    text = path.read_text()
    indented = "\n".join(line[4:] if line.startswith("    ") else "" for line in text.splitlines())
    listed = "\n".join(listings(text, "sh") if "```" in text else [indented]).replace("\\\n", " ").splitlines()
    bare = [line.partition("  #")[0].strip() for line in listed]
    return [" ".join(line.split()) for line in bare if line and not line.startswith("#")]


def overrides_of(command: str) -> list[str]:
    """Hydra overrides of a command; of a sweep, the first value of each."""
    words = [word for word in shlex.split(command.partition("evopress.run")[2]) if "=" in word]
    return [word if "[" in word else word.partition(",")[0] for word in words]


def cells(row: str) -> list[str]:
    """The cells of a table row, without markup for bold. A `|` that is escaped does not separate."""
    parts = re.split(r"(?<!\\)\|", row.strip().removeprefix("|").removesuffix("|"))
    return [part.strip().replace("**", "") for part in parts]


def tables(path: Path) -> list[list[list[str]]]:
    """All tables of a document, each as rows of cells; the first row is the header."""
    collected: list[list[list[str]]] = [[]]
    for line in path.read_text().splitlines():
        if line.strip().startswith("|"):
            if not re.fullmatch(r"[|:\s-]+", line):
                collected[-1].append(cells(line))
        elif collected[-1]:
            collected.append([])
    return [rows for rows in collected if rows]


def table(path: Path, *header: str) -> list[list[str]]:
    """The rows below the header that starts with these cells."""
    (rows,) = (rows for rows in tables(path) if tuple(rows[0][: len(header)]) == header)
    return rows[1:]


FORMAT_NAMES = ("hf", "zeroed", "compressed_tensors", "gguf", "nemotron_nas")
FORMAT_ROWS = table(page("formats"), "settings", *(f"`{name}`" for name in FORMAT_NAMES))
"""What the page on formats says of each compressor: its settings, and a cell for each format."""


def settings_in(cell: str) -> list[str]:
    """The overrides in the first code span of a cell."""
    return re.search(r"`([^`]+)`", cell)[1].split()  # type: ignore[index]
