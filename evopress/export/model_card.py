"""Writes the model card of a checkpoint: what was done, the measurements, and how to load it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from evopress.export.base import Format
from evopress.export.card_header import card_header
from evopress.export.older_names import TESTED_VERSION
from evopress.export.searched import SearchedModel
from evopress.export.verification.verify import Verification

Facts = Mapping[str, object]
"""What is known about the run, in the form of `results.json`. Any entry may be missing."""

COLUMNS_OF_ANSWERS = ("prompt", "dense", "compressed")

PLACEHOLDER_REPOSITORY = "ORG/NAME"
"""Stands for a repository name that is not known yet."""


def model_card(
    checkpoint_format: Format,
    searched: SearchedModel,
    *,
    verification: Verification,
    facts: Facts,
    folder: Path,
    repository: str | None = None,
) -> str:
    """The card in Markdown, with the header that model hubs read.

    Args:
        folder: where the checkpoint is.
        repository: where it will be on the hub; None if it will not be uploaded.
    """
    model = facts.get("model", searched.lm.name)
    size = (
        f"The weight files take {verification.written_bytes / 1e6:.2f} MB "
        f"({verification.predicted_bytes / 1e6:.2f} MB were predicted), {verification.share_of_dense:.1%} of the "
        f"{verification.dense_bytes / 1e6:.2f} MB of the uncompressed model at 16 bits."
    )
    compressor = str(facts["compress"]) if "compress" in facts else None
    sections = [
        card_header(checkpoint_format, searched, compressor=compressor),
        f"# {model}, compressed with evopress",
        f"Format: {checkpoint_format.title}. {_what_was_done(facts)}",
        " ".join(filter(None, (size, _active_note(facts), _sparsity_note(searched)))),
        "## Load it\n\n" + _commands(checkpoint_format, folder, repository),
        checkpoint_format.remark,
        _releases(checkpoint_format),
        "## Levels\n\n" + _levels_table(searched),
        _measurements(facts),
        _answers(facts),
        "## Verified\n\nThe files were read back and compared with the model that the search measured: logits differ "
        f"by at most {verification.max_logit_difference:.3g} (largest logit {verification.max_logit:.3g}), the KL is "
        f"{verification.kl:.3g} nats per token, and the most likely token is the same at "
        f"{verification.same_top_token:.1%} of the positions, computed in {verification.compute_dtype}.",
        "`profile.json` lists the level of every unit.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _commands(checkpoint_format: Format, folder: Path, repository: str | None) -> str:
    """The commands that load the checkpoint from the hub and, unless it is uploaded there, from its folder."""
    on_hub = _shell(checkpoint_format.hub_commands(repository or PLACEHOLDER_REPOSITORY))
    if repository:
        return on_hub
    local = _shell([command.format(folder=folder) for command in checkpoint_format.commands])
    return f"{local}\n\nAfter `hf upload {PLACEHOLDER_REPOSITORY} {folder}`:\n\n{on_hub}"


def _shell(commands: Sequence[str]) -> str:
    return "```sh\n" + "\n".join(commands) + "\n```"


def _releases(checkpoint_format: Format) -> str:
    """The releases of transformers that read the checkpoint."""
    if checkpoint_format.library != "transformers":
        return ""
    return (
        f"Read back with transformers {transformers.__version__}. The configuration and the tokenizer also have the "
        f"keys of transformers 4; evopress has tested this format with transformers {TESTED_VERSION}."
    )


def _what_was_done(facts: Facts) -> str:
    budget = facts.get("budget")
    target = f" to {_amount(budget)}" if isinstance(budget, Mapping) else ""
    method = f" with {facts['compress']}" if "compress" in facts else ""
    search = f"; levels chosen by {facts['search']}" if "search" in facts else ""
    tuned = f"; {_what_was_tuned(facts)}" if "tuned" in facts else ""
    seed = f", seed {facts['seed']}" if "seed" in facts else ""
    return f"Compressed{method}{target}{search}{tuned}{seed}."


def _what_was_tuned(facts: Facts) -> str:
    tuning = facts.get("tuning")
    entry = tuning.get("tuned") if isinstance(tuning, Mapping) else None
    changed = entry.get("changed") if isinstance(entry, Mapping) else None
    return " and ".join(f"{part} tuned" for part in changed) if changed else "scales and norms tuned"


def _amount(budget: Mapping[str, Any]) -> str:
    metric, achieved = budget["metric"], budget["achieved"]
    amounts = {
        "bits": f"{achieved:g} bits per weight",
        "sparsity": f"{achieved:.1%} of the weights zero",
        "drop": f"{achieved:.1%} of the depth dropped",
        "size": f"{achieved / 1e6:.2f} MB",
        "latency": f"{1000 * achieved:.4g} ms per step of generation",
        "memory": f"{achieved / 1e6:.2f} MB of memory{_parts_of_memory(budget)}",
    }
    return amounts.get(metric, f"{achieved:g} {metric}")


def _parts_of_memory(budget: Mapping[str, Any]) -> str:
    """The parts of the memory, and what the cache holds."""
    if "parts" not in budget:
        return ""
    listed = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in budget["parts"].items())
    cache = f"{budget['context']} tokens in {budget['kv']}"
    return f" ({listed}; the cache holds {budget['batch']} x {cache})"


def _active_note(facts: Facts) -> str:
    """The bytes that a token uses, if the model is a mixture of experts."""
    active = facts.get("active_bytes")
    if not isinstance(active, Mapping):
        return ""
    return f"A token uses {active['searched'] / 1e6:.2f} MB of the weights (dense: {active['dense'] / 1e6:.2f} MB)."


def _sparsity_note(searched: SearchedModel) -> str:
    """A warning that sparse weights do not make the file smaller."""
    if not any(kind.removes_weights for kind in searched.weight_kinds):
        return ""
    return "Removed weights are stored as zeros, so the file is as large as the dense one and runs no faster today."


def _levels_table(searched: SearchedModel) -> str:
    space, profile = searched.space, searched.profile
    counts = Counter(space.level(index, profile).label for index in range(len(space)))
    rows = [f"| {label} | {count} |" for label, count in sorted(counts.items())]
    return "\n".join(["| level | units |", "|---|---|", *rows])


def _measurements(facts: Facts) -> str:
    rows = []
    for name in ("dense", "uniform", "searched", "tuned", "uniform_tuned"):
        candidate = facts.get(name)
        if not isinstance(candidate, Mapping):
            continue
        for text, perplexity in candidate.get("perplexity", {}).items():
            kl = candidate.get("kl", {}).get(text, float("nan"))
            rows.append(f"| {name} | {candidate['size_bytes'] / 1e6:.1f} | {text} | {perplexity:.4g} | {kl:.4f} |")
    if not rows:
        return ""
    convention = facts.get("perplexity_convention", "token level")
    header = "## Numbers\n\n| model | MB | text | perplexity | KL from dense |\n|---|---|---|---|---|\n"
    return header + "\n".join(rows) + f"\n\nPerplexity: {convention}."


def _answers(facts: Facts) -> str:
    """A table of the greedy answers of the dense and the compressed model."""
    answers = facts.get("answers")
    if not isinstance(answers, Mapping):
        return ""
    rows = ["| " + " | ".join(_plain(row[key]) for key in COLUMNS_OF_ANSWERS) + " |" for row in answers["prompts"]]
    columns = f"| {' | '.join(COLUMNS_OF_ANSWERS)} |\n|---|---|---|\n"
    return "## Answers\n\nThe most likely tokens, cut after a few words.\n\n" + columns + "\n".join(rows)


def _plain(text: str) -> str:
    """Text on one line, with character references in place of everything that has a meaning in Markdown or HTML."""
    return re.sub(r"[!\"#$%&*+/:;<=>@\[\\\]^_`{|}~]", lambda match: f"&#{ord(match[0])};", " ".join(text.split()))
