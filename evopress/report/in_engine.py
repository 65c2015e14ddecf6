"""What an inference engine measured, read from `results.json`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from evopress.report.parsing import dict_or_empty


@dataclass(frozen=True, kw_only=True)
class InEngine:
    """What an inference engine measured of one model. Memory is that of the whole process. None means unknown."""

    size_bytes: int
    perplexity: float | None
    resident_bytes: float | None
    resident_bytes_without_model: float | None
    prompt_tokens_per_s: float | None
    generated_tokens_per_s: float | None


def engine_of(results: Mapping) -> str:
    """The engine with its version. Empty if none measured anything."""
    entry = dict_or_empty(results.get("engine"))
    models = dict_or_empty(entry.get("models")).values()
    version = next((str(model["version"]) for model in models if "version" in model), "")
    return f"{entry['engine']} {version}".strip() if entry else ""


def measured_in_engine(results: Mapping) -> Iterator[tuple[str, InEngine]]:
    """The measurements of every model that the engine could run. Raises KeyError or ValueError if one is malformed."""
    for name, model in dict_or_empty(dict_or_empty(results.get("engine")).get("models")).items():
        if "error" not in model:
            values = {part.name: model[part.name] for part in fields(InEngine) if part.name != "size_bytes"}
            known = {key: None if value is None else float(value) for key, value in values.items()}
            yield str(name), InEngine(size_bytes=int(model["size_bytes"]), **known)
