"""Measures time, work and rate of every phase on SmolLM2-135M-Instruct, the limits of the machine, and plain versions.

    make bench

Writes `results.json` next to this file. All figures are medians of three runs (gradient table: one run). For ratios the
two versions run alternately, so that a noisy machine disturbs both alike.
"""

import json
import logging
import platform
import tempfile
import time
from datetime import date
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from evopress.compressors.drop import Drop
from evopress.compressors.sparsegpt import SparseGPT
from evopress.data.splits import Splits, load_splits
from evopress.database.cache import DecodedLevels
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.evaluation.metrics import FinalStates, divergences
from evopress.evaluation.switch_effects import parts_of, switch_effects, token_equivalents
from evopress.models.language_model import LanguageModel
from evopress.models.loading import load_model
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.budget import Budget
from evopress.space.build import drop_space, layer_space
from evopress.space.settings import SpaceSettings
from experiments.speed import databases, memory, ratios, setting
from experiments.speed.timing import Phase, ceilings, seconds

log = logging.getLogger("bench")

HERE = Path(__file__).parent
SEARCH = f"search at 3 bit, {ratios.SEARCH.generations} generations"
BITS = Budget(metric="bits", target=3)


def model_phases(lm: LanguageModel, tokens: Tensor, top: dict[str, float]) -> list[Phase]:
    """The parts of an evaluation: a block, the head, and the KL of logits that exist already."""
    ceiling = top[str(lm.dtype).removeprefix("torch.")]
    hidden, kwargs = lm.embed(tokens)
    normed = lm.final_norm(hidden).flatten(0, 1)
    logits = lm.logits(normed[:512])[None]
    states = FinalStates(logits, head=lambda hidden: hidden)
    head_gflop = 2 * lm.hidden_size * lm.vocab_size * tokens.numel() / 1e9

    def compare() -> object:
        return divergences(states, [states] * 4, tokens=tokens[:1])

    return [
        Phase(
            "one block, 4 windows of 512",
            seconds(lambda: lm.run_block(0, hidden, kwargs[0])),
            databases.block_gflop(lm, tokens.numel(), tokens.shape[1]),
            "GFLOP",
            ceiling,
        ),
        Phase(
            "head, 2048 tokens, 64 at once",
            seconds(lambda: [lm.logits(part) for part in normed.split(64)]),
            head_gflop,
            "GFLOP",
            ceiling,
        ),
        Phase(
            "KL of logits, 4 profiles × 512",
            seconds(compare),
            5 * logits.nbytes / 1e9,
            "GB",
            top["copy"] / 2,
        ),
    ]


def table_phase(lm: LanguageModel, context: EvaluationContext, tokens: Tensor, top: dict[str, float]) -> Phase:
    """The gradient table of every switch. Its work is counted in passes through the whole model, as the search does."""
    profile, draws = evenly_spaced_profile(context.space, BITS), 2

    def table() -> object:
        return switch_effects(
            context.evaluator.compressible, profile, parts=parts_of(tokens), draws=draws, rng=Random(0)
        )

    head = 2 * lm.hidden_size * lm.vocab_size / 1e9
    per_token = databases.block_gflop(lm, 1, tokens.shape[1]) * lm.num_blocks + head
    work = token_equivalents(context.space, tokens.numel(), draws) * per_token
    ceiling = top[str(lm.dtype).removeprefix("torch.")]
    return Phase("gradient table, 512 tokens", seconds(table, 1), work, "GFLOP", ceiling)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.perf_counter()
    lm = load_model(setting.MODEL, setting.CACHE)
    splits = load_splits(setting.DATA, lm.tokenizer, setting.CACHE)
    top = ceilings()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        results = measured(lm, splits, top, Path(folder))
    results = {
        "date": date.today().isoformat(),
        "machine": {"processor": _processor(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "dtype": str(lm.dtype),
        "seconds": time.perf_counter() - started,
        "ceilings": top,
        **results,
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    show(results)


def measured(lm: LanguageModel, splits: Splits, top: dict[str, float], folder: Path) -> dict:
    gptq = setting.gptq((6, 5, 4, 3, 2))
    sparse = SparseGPT(num_levels=4).for_hidden_size(lm.hidden_size)
    rows = model_phases(lm, splits.search[:4], top)
    of_gptq = databases.built(lm, gptq, splits.calibration, folder)
    of_sparse = databases.built(lm, sparse, splits.calibration, folder)
    rows += databases.phases(lm, "GPTQ", of_gptq, top, factors=databases.solve_gflop(lm, 5))
    rows += databases.phases(lm, "SparseGPT", of_sparse, top, factors=databases.solve_gflop(lm, 9))
    settings = EvaluatorSettings()
    limit = int(settings.cache_gb * 1e9)
    weights = DecodedLevels(of_gptq.database, limit_bytes=limit, dtype=lm.dtype, device=lm.device)
    space = layer_space(lm, gptq, SpaceSettings())
    evaluator = Evaluator(lm, space, weights, settings)
    context = EvaluationContext(lm, splits, space, evaluator, of_gptq.database, {})
    rows.append(table_phase(lm, context, splits.search[:1], top))
    measured_ratios: dict[str, dict] = {}
    for index, name in ((0, "q, k, v"), (3, "down")):
        group = ratios.group_of(lm, index)
        size = gptq.formats(group.weights[0].shape[1])[0].group_size
        measured_ratios[f"GPTQ of {name}, 5 widths"] = ratios.gptq_solve(gptq, group, size)
        measured_ratios[f"SparseGPT of {name}, 9 levels"] = ratios.sparsegpt_solve(sparse, group)
    drops = drop_space(lm, Drop())
    dropper = Evaluator(lm, drops, None, settings)
    of_drops = ratios.offspring(drops, Budget(metric="drop", target=0.25), 8)
    measured_ratios["8 mutants at 25 % depth"] = ratios.evaluation(dropper, of_drops, splits.search[:1])
    measured_ratios[SEARCH] = ratios.whole_search(context, BITS, folder)
    return {
        "phases": [row.as_dict() for row in rows],
        "ratios": measured_ratios,
        "databases": {"GPTQ of 5 widths": of_gptq.as_dict(), "SparseGPT of 9 levels": of_sparse.as_dict()},
        "teacher_share_of_logits": lm.hidden_size / lm.vocab_size,
        "levels_in_memory_bytes": weights.kept_bytes,
        "memory": memory.peaks(folder, gptq.bits),
    }


def show(results: dict) -> None:
    log.info("ceilings: %s", ", ".join(f"{name} {value:.0f}" for name, value in results["ceilings"].items()))
    for row in results["phases"]:
        log.info(
            "%-32s %8.3f s %9.2f %-5s %8.1f/s %4.0f %% of the ceiling",
            *(row[key] for key in ("name", "seconds", "work", "unit", "rate")),
            100 * row["share_of_ceiling"],
        )
    for name, ratio in results["ratios"].items():
        line = "%-32s %8.2f s instead of %8.2f s: %5.1f times as fast"
        log.info(line, name, ratio["seconds"], ratio["plain_seconds"], ratio["ratio"])
    last = results["ratios"][SEARCH]
    log.info(
        "search: %.0f tokens/s instead of %.0f; largest difference %.1e; same ranking: %s; same profile: %s",
        *(last[key] for key in ("tokens_per_second", "plain_tokens_per_second", "largest_relative_difference")),
        *(last[key] for key in ("same_ranking", "same_profile")),
    )
    for name, database in results["databases"].items():
        log.info(
            "database, %s: %.0f s (%s), %.0f MB, %.0f %% of dense bfloat16 levels",
            name,
            database["seconds"],
            ", ".join(f"{part} {spent:.1f}" for part, spent in sorted(database["parts"].items())),
            database["bytes"] / 1e6,
            100 * database["share_of_dense_levels"],
        )
    for row in results["memory"]["rows"]:
        log.info(
            "memory with %d levels, cache_gb=%g: at most %.0f MB (all decoded: %.0f MB)",
            *(row["levels"], results["memory"]["cache_gb"], row["peak_bytes"] / 1e6, row["all_levels_bytes"] / 1e6),
        )
    log.info(
        "teacher: %.1f %% of its logits; all in %.0f s", 100 * results["teacher_share_of_logits"], results["seconds"]
    )


def _processor() -> str:
    """Name and relevant instruction sets, as far as the system tells them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    extensions = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join([*(names[:1] or [platform.machine()]), *extensions])


if __name__ == "__main__":
    main()
