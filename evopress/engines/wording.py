"""The measurements of an engine in words: lines for the log, and a section of the model card."""

from collections.abc import Iterator, Mapping
from typing import Any

from evopress.engines.known import ENGINES

COLUMNS = (
    "model",
    "MB",
    "perplexity",
    "MB of memory",
    "of these without a model",
    "prompt tokens/s",
    "generated tokens/s",
)


def as_lines(entry: Mapping[str, Any]) -> Iterator[str]:
    """A line for each model that was measured. `entry` is `engine` of `results.json`."""
    for row in _rows(entry):
        cells = ", ".join(f"{value} {column}" for column, value in zip(COLUMNS[1:], row[1:], strict=True))
        yield f"{ENGINES[entry['engine']].title}, {row[0]}: {cells}"


def as_section(entry: Mapping[str, Any]) -> str:
    """The section of the model card, in Markdown. Empty if nothing was measured."""
    rows = list(_rows(entry))
    if not rows:
        return ""
    version = next(model["version"] for model in entry["models"].values() if "version" in model)
    table = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    return (
        f"## In {ENGINES[entry['engine']].title}\n\n"
        + "\n".join(table)
        + f"\n\nMeasured with version {version} on {entry['tokens']} tokens, with {entry['threads']} threads. Speeds "
        "are medians of five, and differ by a few percent from run to run. The memory is that of the whole process.\n"
    )


def _rows(entry: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, model in entry["models"].items():
        if "error" not in model:
            yield [
                name,
                _number(model["size_bytes"], ".1f", unit=1e6),
                _number(model["perplexity"], ".4g"),
                _number(model["resident_bytes"], ".0f", unit=1e6),
                _number(model["resident_bytes_without_model"], ".0f", unit=1e6),
                _number(model["prompt_tokens_per_s"], ",.0f"),
                _number(model["generated_tokens_per_s"], ",.0f"),
            ]


def _number(value: float | None, form: str, *, unit: float = 1) -> str:
    return "–" if value is None else f"{value / unit:{form}}"
