"""Runs a whole job from Python, without configuration files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.compressors.gptq import GPTQ
from evopress.compressors.sparsegpt import SparseGPT
from evopress.data.settings import Data
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.export import Export
from evopress.job import Job
from evopress.models.devices import check_device
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from evopress.models.source import ModelSource
from evopress.pipeline import run_job
from evopress.runtime.json_files import read_json
from evopress.runtime.tracking import Tracker
from evopress.search.base import Search
from evopress.search.guided import Guided
from evopress.search.refinement import Refinement
from evopress.search.selection import Stage
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile
from evopress.tuning.settings import Tuning

DEMO_DATA = Data(
    source="pydoc",
    window=256,
    calibration_tokens=16384,
    search_tokens=32768,
    validation_tokens=4096,
    test_tokens=8192,
)
"""The settings of `data=pydoc`, whose text comes with this package."""

DEMO_SEARCH = Guided(
    rounds=2,
    line_tokens=1024,
    table_tokens=1024,
    dampings=[1, 2],
    refinement=Refinement(table_tokens=512, share=0.08, tokens=1024, line_tokens=1536, excerpt=256),
    generations=2,
    generations_per_table=2,
    offspring=6,
    free_share=0.3,
    down_slope=0.0,
    stages=[Stage(survivors=2, tokens=512), Stage(survivors=1, tokens=1024)],
)
"""The settings of `search=demo`, a search with few tokens."""


@dataclass(frozen=True)
class CompressionResult:
    """The result of `compress`. `results` is the content of `results.json`; `folder` holds all files of the run."""

    profile: Profile
    results: Mapping[str, object]
    folder: Path


def compress(  # noqa: PLR0913 - the public entry point has one keyword per part of a job, as the configuration has
    model: PreTrainedModel | ModelSource | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    budget: Budget,
    folder: str | Path,
    compressor: Compressor | Drop | None = None,
    search: Search | None = None,
    tune: Tuning | None = None,
    data: Data | None = None,
    eval: Eval | None = None,
    export: Export | None = None,
    tracker: Tracker | None = None,
    space: SpaceSettings | None = None,
    effort: int | str | None = None,
    seed: int = 0,
) -> CompressionResult:
    """Compress a model to a budget. A second call with the same folder and settings resumes the run.

    Args:
        model: a transformers model in memory, or a hub id, folder or GGUF file; a `ModelSource` sets more options. A
            model in memory is frozen, and experts stored as one tensor are unpacked; nothing else in it changes.
        tokenizer: required for a model in memory.
        budget: the metric and the target.
        folder: where all files are written, including databases and checkpoints.
        compressor: default: GPTQ, SparseGPT or block dropping, whichever fits the metric of the budget.
        search: default: `search=demo`, which uses few tokens.
        tune: training of scales and norms after the search, such as `Tuning(tokens=24576)`; default: none.
        data: default: `data=pydoc`, a text that comes with this package.
        eval: more data sets, and tasks; default: none.
        export: checkpoints to write; default: none.
        tracker: default: none. Metrics are always written to `metrics.jsonl`.
        space: which units may trade levels; default: units of equal size.
        effort: what search and tuning may cost together: token equivalents such as "300k", or a time such as "30min".
        seed: seed of the search.

    Raises:
        ValueError: settings do not fit together, or `folder` was used with other settings.

    An example::

        result = evopress.compress(model, tokenizer, budget=Budget(metric="bits", target=3), folder="outputs/mine")
        print(result.results["searched"]["kl"], result.results["uniform"]["kl"])
    """
    folder = Path(folder)
    profile = run_job(
        Job(
            model=_source(model, tokenizer),
            data=data or DEMO_DATA,
            compress=compressor or _default_compressor(budget),
            space=space or SpaceSettings(),
            budget=budget,
            search=search or DEMO_SEARCH,
            tune=tune or Tuning(),
            evaluator=EvaluatorSettings(),
            eval=eval or Eval(),
            export=export or Export(),
            tracker=tracker or Tracker(),
            effort=effort,
            seed=seed,
            folder=folder,
            outputs=folder,
        )
    )
    return CompressionResult(cast(Profile, profile), read_json(folder / "results.json"), folder)


def _source(
    model: PreTrainedModel | ModelSource | str, tokenizer: PreTrainedTokenizerBase | None
) -> ModelSource | LanguageModel:
    if isinstance(model, str):
        return ModelSource(name=Path(model).name, path=model)
    if isinstance(model, ModelSource):
        return model
    if tokenizer is None:
        raise ValueError("a model in memory needs its tokenizer as the second argument")
    check_device(str(model.device), "the device of the model")
    return wrap_model(model, tokenizer, type(model).__name__)


def _default_compressor(budget: Budget) -> Compressor | Drop:
    if budget.metric == "sparsity":
        return SparseGPT(base=float(budget.target))
    return Drop() if budget.metric == "drop" else GPTQ()
