"""The model card of a checkpoint: what was done, the numbers, and how to load it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from evopress.export.base import Format, Searched
from evopress.export.verify import Verification
from evopress.weights.sparse import SparseWeight

Facts = Mapping[str, object]
"""What the run says of itself, in the form of `results.json`; every entry may be missing."""


def card(form: Format, searched: Searched, found: Verification, facts: Facts, folder: Path) -> str:
    """Markdown with the header that model hubs read."""
    size = (
        f"The weight files take {found.written_bytes / 1e6:.2f} MB ({found.predicted_bytes / 1e6:.2f} MB were "
        f"predicted), {found.share_of_dense:.1%} of the {found.dense_bytes / 1e6:.2f} MB of the uncompressed model at "
        "16 bits."
    )
    commands = "\n".join(line.format(folder=folder) for line in form.commands)
    sections = [
        f"---\nlibrary_name: transformers\ntags: [evopress]\nbase_model: {facts.get('model', searched.lm.name)}\n---",
        f"# {facts.get('model', searched.lm.name)}, compressed with evopress",
        f"Format: {form.title}. {_what_was_done(facts)}",
        f"{size} {_honest_words(searched)}".strip(),
        "## Load it\n\n```sh\n" + commands + "\n```",
        "## Levels\n\n" + _levels_table(searched),
        _numbers(facts),
        "## Verified\n\nThe files were read back and compared with the model that the search measured: largest "
        f"difference of a logit {found.max_logit_difference:.3g} (largest logit {found.max_logit:.3g}), KL "
        f"{found.kl:.3g} nats per token, the same most likely token at {found.same_top_token:.1%} of the positions, "
        f"computed in {found.compute_dtype}.",
        "`profile.json` names the level of every unit.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what_was_done(facts: Facts) -> str:
    budget = facts.get("budget")
    target = f" to {_amount(budget['metric'], budget['achieved'])}" if isinstance(budget, Mapping) else ""
    method = f" with {facts['compress']}" if "compress" in facts else ""
    search = f"; levels chosen by {facts['search']}" if "search" in facts else ""
    seed = f", seed {facts['seed']}" if "seed" in facts else ""
    return f"Compressed{method}{target}{search}{seed}."


def _amount(metric: str, achieved: float) -> str:
    words = {
        "bits": f"{achieved:g} bits per weight",
        "sparsity": f"{achieved:.1%} of the weights zero",
        "drop": f"{achieved:.1%} of the depth dropped",
        "size": f"{achieved / 1e6:.2f} MB",
    }
    return words.get(metric, f"{achieved:g} {metric}")


def _honest_words(searched: Searched) -> str:
    """What sparsity does not save."""
    if not any(isinstance(searched.packed(layer), SparseWeight) for layer in searched.levels):
        return ""
    return "Removed weights are stored as zeros: the file is as large, and in today's engines as fast, as dense."


def _levels_table(searched: Searched) -> str:
    space, profile = searched.space, searched.profile
    counts = Counter(space.level(index, profile).label for index in range(len(space)))
    rows = [f"| {label} | {count} |" for label, count in sorted(counts.items())]
    return "\n".join(["| level | units |", "|---|---|", *rows])


def _numbers(facts: Facts) -> str:
    rows = []
    for name in ("dense", "uniform", "searched"):
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
