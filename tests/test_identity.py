"""For every configuration key: it is part of what identifies a kept file, or it cannot change the bytes of one.

`RULES` says which of these identities a key is part of. Other keys must leave them all as they are, because nothing
should be made again for them.
"""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from evopress.compressors.rtn import RTN
from evopress.config import CONFIG_FOLDER, GROUPS, build_job
from evopress.data.splits import load_splits
from evopress.data.windows import hash_of_windows
from evopress.database.cache import DecodedLevels
from evopress.database.manifest import fingerprint
from evopress.evaluation.candidates import compared_profiles
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.evaluation.teacher_cache import TeacherCache
from evopress.identity import (
    database_identity,
    evaluation_identity,
    model_identity,
    part_identity,
    scores_identity,
    search_identity,
)
from evopress.models.language_model import LanguageModel
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.planning.planned_run import space_of
from evopress.runtime.versions import code_hash
from evopress.space.build import layer_space
from evopress.space.settings import SpaceSettings
from tests import plain
from tests.configurations import composed
from tests.tiny_models import random_model, tiny, token_windows, tokenizer

BASE = [
    "model=hf",
    "model.name=tiny",
    "model.dtype=float32",
    "model.device=cpu",
    "compress.group_size=32",
    "data=pydoc",
    "data.window=32",
    "data.calibration_tokens=256",
    "data.search_tokens=256",
    "data.validation_tokens=64",
    "data.test_tokens=128",
    "evaluator.batch_tokens=128",
    "tune=default",
    "tune.tokens=64",
    "tune.resolve=signround",
]

ALL = "database search scores evaluation"
LATER = "search scores evaluation"
RESULTS = "scores evaluation"

RULES: dict[str, tuple[str, str]] = {
    # key: (the identities that it is part of, another value). Without a value the reason stands in IRRELEVANT.
    "model.path": (ALL, "{other}"),
    "model.dtype": (ALL, "bfloat16"),
    "model.attention": (ALL, "eager"),
    "model.family": (ALL, "{{layers: [[self_attn.q_proj, self_attn.k_proj], [self_attn.v_proj], {others}]}}"),
    "model.name": ("evaluation", "other"),
    "data.source": (ALL, "{text}"),
    "data.validation_source": (RESULTS, "{text}"),  # the test split then starts earlier in data.source
    "data.test_source": (RESULTS, "{text}"),
    "data.text_column": ("evaluation", "body"),
    "data.window": (ALL, "16"),
    "data.calibration_tokens": (ALL, "128"),
    "data.search_tokens": (LATER, "128"),  # of the scores because the run tunes
    "data.validation_tokens": (RESULTS, "32"),
    "data.test_tokens": (RESULTS, "96"),
    "data.bos": (ALL, "true"),
    "data.calibration_seed": (ALL, "1"),
    "compress.bits": (ALL, "[2,3,4]"),
    "compress.group_size": (ALL, "16"),
    "compress.symmetric": (ALL, "true"),
    "compress.scale_dtype": (ALL, "bfloat16"),
    "compress.act_order": (ALL, "false"),
    "compress.range": (ALL, "minmax"),
    "compress.refit_scales": (ALL, "false"),
    "compress.weigh_tokens": (ALL, "false"),
    "compress.damp": (ALL, "0.02"),
    "compress.propagate_bits": (ALL, "4"),
    "space.trade": (LATER, "any"),
    "space.tie": (LATER, "engine"),
    "space.drops": (LATER, "subblock; space.trade=any"),
    "budget.metric": (LATER, "size; budget.target=500KB"),
    "budget.target": (LATER, "2.5"),
    "effort": (LATER, "60k"),  # of the scores because the run tunes
    "seed": ("search evaluation", "1"),
    "evaluator.fitness": ("search evaluation", "perplexity"),
    "evaluator.top_k": ("search evaluation", "64"),
    "evaluator.batch_tokens": (ALL, "64"),
    "evaluator.head_tokens": (LATER, "32"),
    "tune.tokens": (RESULTS, "32"),
    "tune.windows": (RESULTS, "2"),
    "tune.scales_lr": (RESULTS, "1e-3"),
    "tune.norms_lr": (RESULTS, "1e-3"),
    "tune.weights_lr": (RESULTS, "1e-3"),
    "tune.excerpt": (RESULTS, "16"),
    "tune.warmup": (RESULTS, "0.2"),
    "tune.checks": (RESULTS, "2"),
    "tune.patience": (RESULTS, "1"),
    "tune.validation_tokens": (RESULTS, "32"),
    "tune.seed": (RESULTS, "1"),
    "tune.compare_uniform": (RESULTS, "true"),
    "tune.resolve": (RESULTS, "none"),
    "tune.rounded_rate": (RESULTS, "0.5"),
    "tune.rounded_tokens": (RESULTS, "64"),
    "tune.resolve_steps": (RESULTS, "30"),
    "tune.resolve_windows": (RESULTS, "3"),
    "tune.resolve_distance": (RESULTS, "0.3"),
    "tune.resolve_range_distance": (RESULTS, "0.05"),
    "eval.datasets": (RESULTS, "[{text}]"),
    "eval.test_tokens": ("evaluation", "64"),
    "eval.tasks": (RESULTS, "[piqa]"),
    "eval.include_path": ("evaluation", "{folder}"),
    "eval.num_fewshot": ("evaluation", "2"),
    "eval.limit": ("evaluation", "10"),
    "eval.batch_size": ("evaluation", "4"),
    "eval.apply_chat_template": ("evaluation", "true"),
    "eval.fewshot_as_multiturn": ("evaluation", "false"),
    "eval.system_instruction": ("evaluation", "short"),
    "eval.gen_kwargs": ("evaluation", "{{temperature: 1}}"),
    "eval.prompts": ("evaluation", "[Hello]"),
    "eval.log_samples": ("evaluation", "true"),
    "eval.engine": ("evaluation", "llama_cpp"),
    "eval.engine_python": ("evaluation", "{folder}"),
    "eval.engine_tokens": ("evaluation", "64"),
    "export.formats": ("evaluation", "[hf]"),
    "export.dtype": ("evaluation", "float16"),
    "export.engine": ("evaluation", "vllm"),
    "export.pre_tokenizer": ("evaluation", "smollm"),
    "export.embeddings": ("evaluation", "Q8_0"),
    "export.push_to_hub": ("evaluation", "lab/small"),
    "export.private": ("evaluation", "false"),
}
"""What each key is part of. In a value, {other} is another model, {text} another text, {folder} a
folder, {others} the other layers of a block."""

IRRELEVANT: dict[str, str] = {
    "model.tokenizer": "its tokens count and, for checkpoints, its content",
    "model.package": "says where the files are; their content counts",
    "model.revision": "says which files to read; their content counts",
    "model.gguf_file": "says which file to read; its content counts",
    "model.device": "cpu, cuda and so on count by the kind of device that is used",
    "model.offload": "the same kernels run on copies of the same weights",
    "model.trust_remote_code": "the class of the model counts",
    "model.max_perplexity": "refuses a model, and changes none",
    "evaluator.cache_gb": "weights that are decoded again are the same",
    "evaluator.states_gb": "says how many runs are held at once, not what goes through a block at once",
    "tune.save_minutes": "a run that continues from a saved state ends with the same bytes",
    "tracking._target_": "trackers only receive",
    "targets": "each target is a budget in a run of its own",
    "stages": "what a stage makes does not depend on the others; without tune there is no tuned model",
    "outputs": "the place of the files",
    "resume": "the place of the files",
    "finish": "only ends stages early, and their files then say so",
}
"""Why a key cannot change the bytes of anything that is kept."""

CHANGED: dict[str, str] = {
    "model.offload": "true",
    "model.max_perplexity": "1e9",
    "evaluator.cache_gb": "0.1",
    "evaluator.states_gb": "0.1",
    "tune.save_minutes": "1",
    "targets": "[2.5,4]",
    "stages": "[database,search,tune]",
    "outputs": "elsewhere",
}
"""Other values of irrelevant keys that can have one here."""


def keys_of(cfg: DictConfig) -> list[str]:
    """Every key of a class or of the top; search has the keys of the chosen method, which count as a whole."""
    groups = [f"{group}.{key}" for group in GROUPS for key in cfg[group] if group != "search"]
    named = [key for key in groups if not key.endswith("._target_") or key.startswith("tracking")]
    return named + [str(key) for key in cfg if key not in GROUPS]


@pytest.fixture(scope="module")
def files(model_folders, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("identity")
    (folder / "text.txt").write_text("".join(f"Sentence {number} says nothing new. " for number in range(400)))
    other = folder / "other"
    random_model("qwen2").save_pretrained(other)
    tokenizer().save_pretrained(other)
    return {
        "model": str(model_folders("llama")),
        "other": str(other),
        "text": str(folder / "text.txt"),
        "folder": str(folder),
        "others": "[self_attn.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]",
    }


MODELS: dict[str, LanguageModel] = {}


def loaded(source: ModelSource, folder: Path) -> LanguageModel:
    """The model of a source, loaded once."""
    if repr(source) not in MODELS:
        MODELS[repr(source)] = load_model(source, folder)
    return MODELS[repr(source)]


def identities(files: dict[str, str], folder: Path, *overrides: str) -> dict[str, str]:
    """The fingerprint of each identity for a configuration. Loads the model and cuts the text, but runs nothing."""
    parts = [part.format(**files) for override in overrides for part in override.split("; ")]
    job = build_job(composed(*BASE, f"model.path={files['model']}", *parts), folder)
    lm = loaded(job.model, folder)
    splits = load_splits(job.data, lm.tokenizer, folder)
    compressor = job.compress.for_hidden_size(lm.hidden_size)
    space = space_of(job, lm)
    database = database_identity(lm, compressor, splits, job.evaluator.batch_tokens)
    identity = model_identity(lm, compressor, database)
    context = EvaluationContext(lm, splits, space, Evaluator(lm, space, None, job.evaluator), None, identity)
    profiles = compared_profiles(space, space.uniform(0), job.budget)
    test_sets = {test_set.name: splits.test for test_set in job.test_sets}
    tasks = {task: {} for task in job.eval.tasks}
    scores = scores_identity(job, context, profiles, test_sets=test_sets, tasks=tasks, extents={})
    every = {
        "database": database,
        "search": search_identity(job, context),
        "scores": scores,
        "evaluation": evaluation_identity(job, context, scores),
    }
    return {name: fingerprint(identity) for name, identity in every.items()}


@pytest.fixture(scope="module")
def before(files, tmp_path_factory) -> dict[str, str]:
    return identities(files, tmp_path_factory.mktemp("before"))


def test_every_key_has_a_rule_or_a_reason():
    keys = set(keys_of(composed(*BASE, "model.path=x")))
    assert not RULES.keys() & IRRELEVANT.keys()
    assert RULES.keys() | IRRELEVANT.keys() == keys


@pytest.mark.counts("identity keys walked")
@pytest.mark.parametrize("key", RULES)
def test_a_key_changes_the_identities_that_it_is_part_of_and_no_other(key, files, before, tmp_path):
    expected, value = RULES[key]
    after = identities(files, tmp_path, f"{key}={value}")
    assert {name for name in before if after[name] != before[name]} == set(expected.split())


@pytest.mark.counts("identity keys walked")
@pytest.mark.parametrize("key", CHANGED)
def test_a_key_that_cannot_change_bytes_changes_no_identity(key, files, before, tmp_path):
    assert key in IRRELEVANT
    assert identities(files, tmp_path, f"{key}={CHANGED[key]}") == before


def test_without_tuning_scores_do_not_depend_on_its_text_or_settings(files, before, tmp_path):
    untuned = identities(files, tmp_path, "tune.tokens=0; tune.resolve=none")
    assert identities(files, tmp_path, "stages=[database,search,evaluate]") == untuned
    others = identities(
        files, tmp_path, "tune.tokens=0; tune.resolve=none; data.search_tokens=128; tune.seed=1; tune.scales_lr=1e-3"
    )
    assert others["scores"] == untuned["scores"] != before["scores"]


SETTINGS = sorted(
    f"{path.parent.name}={path.stem}" for group in ("compress", "search") for path in CONFIG_FOLDER.glob(f"{group}/*")
)


@pytest.mark.parametrize("option", SETTINGS)
def test_every_setting_of_a_compressor_and_of_a_search_is_in_its_identity(option, tmp_path):
    group = option.partition("=")[0]
    missing = {
        "search=profile": ["search.path=profile.txt"],
        "compress=import": ["compress.sources=[some.gguf]", "tune=none"],
    }.get(option, [])
    cfg = composed(option, *missing)
    part = getattr(build_job(cfg, tmp_path), group)
    names = {field.name for field in fields(get_class(OmegaConf.select(cfg, f"{group}._target_")))}
    assert part_identity(part, "x").keys() == {"name", *names}


def test_calibration_settings_do_not_matter_to_a_compressor_without_hessians(tmp_path):
    lm = tiny("llama")
    rtn, gptq = (build_job(composed(*BASE, "model.path=x", f"compress={name}"), tmp_path) for name in ("rtn", "gptq"))
    splits = load_splits(rtn.data, lm.tokenizer, tmp_path)
    others = replace(splits, calibration=splits.calibration[:2], hashes={**splits.hashes, "calibration": "other"})
    for job, is_the_same in ((rtn, True), (gptq, False)):
        first = database_identity(lm, job.compress, splits, 128)
        assert (database_identity(lm, job.compress, others, 128) == first) is is_the_same
        assert (database_identity(lm, job.compress, splits, 64) == first) is is_the_same


def test_formats_matter_to_the_search_where_the_budget_is_a_file_size(files, before, tmp_path):
    size = "budget.metric=size; budget.target=500KB"
    first = identities(files, tmp_path, size)
    other = identities(files, tmp_path, size, "export.formats=[compressed_tensors]")
    assert first["search"] != other["search"]


@pytest.mark.parametrize("change", ["context=2048", "batch=2", "kv=fp8", "reserve=10KB", "target=2MB"])
def test_every_setting_of_a_budget_of_memory_matters_to_the_search(change, files, tmp_path):
    memory = "budget=memory; budget.target=3MB; budget.reserve=1KB; budget.context=1024"
    first, other = (identities(files, tmp_path, f"{memory}{more}") for more in ("", f"; budget.{change}"))
    assert first["search"] != other["search"] and first["evaluation"] != other["evaluation"]
    assert first["database"] == other["database"]


def test_a_change_of_the_code_of_a_compressor_from_outside_changes_its_hash(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "own_compressor.py"
    path.write_text("class Own: pass\n")
    cls = __import__("own_compressor").Own
    first = code_hash(cls)
    path.write_text("class Own: pass  # other\n")
    assert first and code_hash(cls) != first
    assert code_hash(EvaluatorSettings) is None


def test_the_same_ids_in_windows_of_another_length_have_another_hash():
    windows = token_windows(4, 6)
    assert hash_of_windows(windows) == hash_of_windows(windows.clone())
    assert hash_of_windows(windows) != hash_of_windows(windows.view(2, 12))
    assert hash_of_windows(windows) != hash_of_windows(windows.int())


def test_the_states_of_the_dense_model_are_kept_apart_for_windows_of_another_length():
    cache, windows = TeacherCache(1e9), token_windows(4, 6)
    cache.get([windows], list)
    (states,) = cache.get([windows.view(2, 12)], list)
    assert states.shape == (2, 12)


@pytest.mark.parametrize("limits", [{"states_gb": 1e-6}, {"cache_gb": 1e-6}], ids=str)
def test_limits_of_memory_do_not_change_a_bit_of_the_scores(limits, tmp_path):
    lm, compressor = tiny("llama"), RTN(bits=(4, 3, 2), group_size=32)
    space = layer_space(lm, compressor, SpaceSettings())
    database = plain.filled_database(lm, plain.layer_levels(lm, compressor), tmp_path)

    def evaluator(settings: EvaluatorSettings) -> Evaluator:
        limit = int(settings.cache_gb * 1e9)
        weights = DecodedLevels(database, limit_bytes=limit, dtype=lm.dtype, device=lm.device)
        return Evaluator(lm, space, weights, settings)

    ample, small = (evaluator(EvaluatorSettings(batch_tokens=64, **settings)) for settings in ({}, limits))
    profiles, tokens = [space.uniform(0), (1, *space.uniform(0)[1:]), space.uniform(2)], token_windows(5, 32)
    assert ample.measure(profiles, tokens) == small.measure(profiles, tokens)
    assert ample.weights.kept_bytes > small.weights.kept_bytes or "states_gb" in limits
