"""Measures, on unseen tokens, the profiles that searches had reached after given numbers of token equivalents.

    python experiments/search/measure.py --task "3 bit" --at 60000 300000 -- RUN_FOLDER ...

A run folder is one of `python -m evopress.run`, finished or not. All must have the same model and database. Adds
records to `results.json` next to this file.
"""

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from evopress.config import CONFIG_FOLDER, build_job
from evopress.data.splits import load_splits
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.preparation import prepare_context
from evopress.search.encoding import decode
from evopress.space.units import Profile

RESULTS = Path(__file__).parent / "results.json"
DECISION = re.compile(r"stage (\d+)/\1$|(line search|swaps at once|initial candidates)$")
"""Labels of batches after which the search continues from the fittest profile."""


@dataclass(frozen=True)
class Standing:
    """The profile that a search had reached, and what it had spent by then."""

    profile: Profile
    token_equivalents: float
    kl_search: float | None
    label: str


def questions_of(run: Path) -> list[dict]:
    """All questions of a run so far."""
    return [json.loads(line) for line in (run / "search.jsonl").read_text().splitlines()[1:]]


def history(run: Path) -> Iterator[Standing]:
    """The profile after each batch that decided something."""
    spent = 0.0
    for question in questions_of(run):
        spent += question["token_equivalents"]
        if not DECISION.search(question.get("label") or ""):
            continue
        best = min(range(len(question["answer"])), key=question["answer"].__getitem__)
        yield Standing(decode(question["profiles"][best]), spent, question["answer"][best], question["label"])


def standing_at(run: Path, limit: float) -> Standing | None:
    """The last profile within `limit` token equivalents; the result of the run if that is within them."""
    result = run / "profile.json"
    done = json.loads(result.read_text()) if result.exists() else None
    passed = [standing for standing in history(run) if standing.token_equivalents <= limit]
    if done and done["token_equivalents"] <= limit:
        profile = tuple(unit["level"] for unit in done["units"])
        kl_search = passed[-1].kl_search if passed and passed[-1].profile == profile else None
        return Standing(profile, done["token_equivalents"], kl_search, "end")
    return passed[-1] if passed else None


def overrides_of(run: Path) -> list[str]:
    """The settings that the command of a run changed."""
    return [str(key) for key in OmegaConf.load(run / ".hydra" / "overrides.yaml") if not str(key).startswith("hydra.")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True)
    parser.add_argument("--at", type=float, nargs="+", required=True)
    parser.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args()
    overrides = {run: overrides_of(run) for run in args.runs}
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        configs = {run: compose("config", overrides=overrides[run]) for run in args.runs}
    job = build_job(configs[args.runs[0]], args.runs[0])
    assert isinstance(job.model, ModelSource)
    lm = load_model(job.model, job.outputs / "cache")
    context = prepare_context(job, lm, load_splits(job.data, lm.tokenizer, job.outputs / "cache"))
    rows = [
        (run, standing)
        for run in args.runs
        for standing in dict.fromkeys(standing_at(run, limit) for limit in args.at)
        if standing
    ]
    results = [context.evaluator.measure([standing.profile], context.splits.test)[0] for _, standing in rows]
    records = []
    for (run, standing), result in zip(rows, results, strict=True):
        seconds = json.loads((run / "seconds.json").read_text()).get("search", 0.0)
        total = sum(question["token_equivalents"] for question in questions_of(run))
        records.append(
            {
                "task": args.task,
                "search": str(configs[run].search["_target_"]).rpartition(".")[2].lower(),
                "seed": int(configs[run].seed),
                "token_equivalents": round(standing.token_equivalents),
                "seconds": round(seconds * standing.token_equivalents / total, 1),
                "kl_unseen": round(result.mean_kl, 5),
                "kl_search": standing.kl_search,
                "cost": context.space.cost(standing.profile),
                "perplexity_unseen": round(result.perplexity, 3),
                "stands_at": standing.label,
                "overrides": [re.sub("^(data.*=).*/", r"\1", override) for override in overrides[run]],  # no folders
            }
        )
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps(known + [r for r in records if r not in known], indent=1) + "\n")
    for record in records:
        print({key: record[key] for key in ("search", "seed", "token_equivalents", "kl_unseen", "kl_search")})


if __name__ == "__main__":
    main()
