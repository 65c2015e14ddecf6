"""Synthetic run directories with the files of a finished run."""

import json
from pathlib import Path
from random import Random

import yaml

from evopress.search.encoding import encode

KINDS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
BITS = (6, 5, 4, 3, 2)
CONFIG = {
    "model": {"_target_": "evopress.models.source.ModelSource", "name": "made-up"},
    "compress": {"_target_": "evopress.compressors.gptq.GPTQ", "bits": [2, 3, 4, 5, 6]},
    "budget": {"metric": "bits", "target": 3},
    "seed": 0,
}
SETTINGS = {
    "search": {"name": "Evolution", "generations": 4},
    "budget": {"metric": "bits", "target": 3},
    "evaluator": {"fitness": "kl", "top_k": 512},
    "seed": 0,
}


def levels_of(num_blocks: int, rng: Random) -> tuple[int, ...]:
    return tuple(rng.choice((2, 3, 3, 4)) for _ in range(num_blocks * len(KINDS)))


def profile_json(levels: tuple[int, ...], num_weights: int = 4096) -> dict:
    units = [
        {
            "unit": f"model.layers.{index // len(KINDS)}.{KINDS[index % len(KINDS)]}",
            "level": level,
            "label": f"{BITS[level]}bit",
            "cost": BITS[level] * num_weights,
            "size_bytes": BITS[level] * num_weights // 8,
        }
        for index, level in enumerate(levels)
    ]
    return {
        "settings": SETTINGS,
        "achieved": 3.0,
        "token_equivalents": 4096.0,
        "versions": {"evopress": "0.1.0", "torch": "2.13.0"},
        "cost": sum(unit["cost"] for unit in units),
        "units": units,
    }


def results_json(levels: tuple[int, ...], num_weights: int = 4096, fixed: int = 100_000) -> dict:
    stored = sum(BITS[level] * num_weights // 8 for level in levels)

    def candidate(size: int, bits: float, perplexity: float, kl: float) -> dict:
        return {
            "size_bytes": size,
            "bits_per_weight": bits,
            "bits_per_weight_with_scales": bits + 0.1484375 if bits < 16 else bits,
            "perplexity": {"pydoc": perplexity, "wikitext2": perplexity * 1.37},
            "kl": {"pydoc": kl, "wikitext2": kl * 1.21},
            "tasks": {"piqa": {"acc,none": 0.65 - kl, "acc_stderr,none": 0.0123, "acc_norm,none": 0.6612345 - kl}},
        }

    return {
        "model": "made-up",
        "compress": "gptq",
        "budget": {"metric": "bits", "target": 3.0, "achieved": 3.0},
        "search": "evolution",
        "seed": 0,
        "perplexity_convention": "token level, windows of 256, BOS off",
        "tokens": {"calibration": 16384, "search": 4096.0, "test": 8192},
        "seconds": {"load": 1.25, "search": 75.5},
        "notes": ["model.layers.0.mlp.up_proj: damping raised to 0.1"],
        "dense": candidate(fixed + 2 * num_weights * len(levels), 16.0, 12.3456789, 0.0),
        "uniform": candidate(fixed + stored, 3.0, 15.8765432, 0.2345678),
        "searched": candidate(fixed + stored, 3.0, 14.1234567, 0.1357911),
    }


def search_lines(levels: tuple[int, ...], generations: int, offspring: int, rng: Random) -> list[dict]:
    lines: list[dict] = [{"header": SETTINGS}]
    for generation in range(1, generations + 1):
        for stage, (tokens, count) in enumerate(((512, offspring), (2048, max(offspring // 4, 2))), start=1):
            answer = [0.12 + 0.3 * rng.random() ** 2 / generation for _ in range(count)]
            lines.append(
                {
                    "ask": "batch",
                    "label": f"generation {generation}/{generations}, stage {stage}/2",
                    "fitness": None,
                    "tokens": tokens,
                    "profiles": [encode(levels)] * count,
                    "answer": answer,
                    "token_equivalents": float(tokens * count),
                }
            )
    return lines


def make_run(folder: Path, num_blocks: int = 2, generations: int = 3, offspring: int = 6, seed: int = 0) -> Path:
    """A finished run that quantised a model."""
    rng = Random(seed)
    levels = levels_of(num_blocks, rng)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(["model=tiny", "data.source=my text.txt"]))
    (folder / "results.json").write_text(json.dumps(results_json(levels)))
    (folder / "profile.json").write_text(json.dumps(profile_json(levels)))
    (folder / "seconds.json").write_text(json.dumps({"load": 1.25, "database": 100.0, "search": 75.5, "evaluate": 3.0}))
    lines = search_lines(levels, generations, offspring, rng)
    (folder / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.log").write_text(
        "[2026-01-01 10:00:00,000][evopress.preparation][INFO] - dense perplexity 12.35\n"
        "[2026-01-01 10:00:01,000][evopress.models.language_model][WARNING] - the tokenizer has no BOS token\n"
    )
    return folder
