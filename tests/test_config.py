"""Every option of every group composes, builds a job, and shows all settings of its class."""

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf, open_dict

from evopress.config import CONFIG_FOLDER, GROUPS, build_job, suggest_keys, suggest_options
from evopress.runtime.config_class import keys_of
from evopress.tuning.settings import Tuning
from tests.configurations import composed

OPTIONS = sorted(
    f"{path.parent.name}={path.stem}" for path in CONFIG_FOLDER.glob("*/*.yaml") if path.parent.name in GROUPS
)
FILLED_IN = {
    "data=text": [f"data.source={CONFIG_FOLDER}/text.txt"],
    "budget=latency": ["budget.target=20ms", "budget.table=table.json"],
    "budget=memory": ["budget.target=24GB"],
    "budget=size": ["budget.target=80MB"],
    "search=profile": ["search.path=profile.txt"],
    "model=hf": ["model.path=some/model"],
    "compress=import": ["compress.sources=[some.gguf]", "tune=none"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_the_yaml_of_an_option_lists_every_field_of_its_class(option):
    group = option.partition("=")[0]
    node = composed(option)[group]
    known = set(keys_of(get_class(node._target_))) if node._target_ != "evopress.runtime.tracking.Tracker" else set()
    assert set(node) - {"_target_"} == known


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds_a_job(option, tmp_path):
    overrides = FILLED_IN.get(option, [])
    if option == "data=text":
        source = tmp_path / "text.txt"
        source.write_text("words")
        overrides = [f"data.source={source}"]
    job = build_job(composed(option, *overrides), tmp_path)
    assert job.folder == tmp_path


@pytest.mark.parametrize("option", ["drop", "float", "gguf", "gptq", "rtn"])
def test_a_compressor_has_the_same_defaults_in_yaml_and_in_python(option, tmp_path):
    """The others take their base sparsity from the budget."""
    compressor = build_job(composed(f"compress={option}"), tmp_path).compress
    assert compressor == type(compressor)()


@pytest.mark.parametrize(
    ("overrides", "resolve", "tunes"),
    [
        (["model=mistral7b", "compress=gptq"], "signround", True),
        (["model=mistral7b", "compress=rtn"], "signround", True),
        (["model=mistral7b", "compress=gptq", "data.calibration_tokens=8192"], "none", True),
        (["model=mistral7b", "compress=gguf"], "none", True),
        (["model=mistral7b", "compress=sparsegpt"], "none", True),
        (["model=mistral7b", "compress=drop"], "none", True),
        (["model=mistral7b", "compress=gptq", "tune=none"], "none", False),
        (["model=smollm2", "compress=gptq"], "none", True),
        (["model=tiny", "compress=gptq"], "none", False),
        (["experiment=mistral7b_3bit"], "none", False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_models_are_tuned_unless_they_are_tiny_and_rounding_is_learnt_where_there_are_codes(
    overrides, resolve, tunes, tmp_path
):
    job = build_job(composed(*overrides), tmp_path)
    assert (job.tune.resolve, job.tunes) == (resolve, tunes)
    job.check()


@pytest.mark.parametrize("option", ["float", "gguf", "gptq", "magnitude", "rtn", "sparsegpt", "wanda"])
def test_advice_about_levels_names_a_key_of_the_compressor(option, tmp_path):
    cfg = composed(f"compress={option}")
    group, _, key = build_job(cfg, tmp_path).compress.levels_key.partition(".")
    assert key in cfg[group]


@pytest.mark.parametrize("compress", ["gptq", "sparsegpt", "drop", "gguf"])
def test_the_default_search_is_guided(compress):
    assert composed("model=mistral7b", f"compress={compress}").search._target_ == "evopress.search.guided.Guided"


def test_the_evolution_search_has_the_settings_of_the_paper():
    cfg = composed("model=mistral7b", "compress=gptq", "budget=3bit", "search=evolution")
    OmegaConf.to_container(cfg.search, throw_on_missing=True)
    assert cfg.model.path == "mistralai/Mistral-7B-v0.3"
    assert (cfg.search.generations, cfg.search.offspring) == (150, 128)
    assert [(stage.survivors, stage.tokens) for stage in cfg.search.stages] == [(16, 2048), (4, 16384), (1, 131072)]
    assert (cfg.data.source, cfg.data.calibration_tokens, cfg.data.search_tokens) == ("fineweb_edu", 2**23, 2**19)


@pytest.mark.parametrize("experiment", sorted(path.stem for path in CONFIG_FOLDER.glob("experiment/*.yaml")))
def test_the_parts_of_every_experiment_fit_together(experiment, tmp_path):
    job = build_job(composed(f"experiment={experiment}"), tmp_path)
    job.budget.check(job.compress.metric, job.compress.span)
    assert experiment.startswith(job.model.name)
    assert job.eval.datasets == ["wikitext2", "c4"] and job.eval.test_tokens is None


def test_the_most_similar_key_is_suggested_for_a_misspelled_one():
    (line,) = suggest_keys(["model=smollm2", "search.generatons=3", "hydra.run.dir=x"])
    assert "search.generatons is not a setting: did you mean search.generations?" in line


@pytest.mark.parametrize(
    ("argument", "lines"),
    [
        ("tune=false", ["tune=false is not an option: use tune= with one of default, long, none, short"]),
        ("tune=default", []),
        ("seed=3", []),
        ("budget.target=2.5", []),
    ],
)
def test_a_number_or_truth_value_in_place_of_an_option_is_answered_with_the_options(argument, lines):
    assert suggest_options([argument]) == lines


def test_a_number_in_place_of_a_budget_is_answered_with_the_key_that_takes_it():
    (line,) = suggest_options(["budget=5"])
    assert "3bit" in line and line.endswith("for another target, add budget.target=5")


def test_every_file_of_a_group_is_a_choice_by_its_name():
    """Hydra lists all of them where a choice is unknown."""
    assert not [path for path in CONFIG_FOLDER.glob("*/*.yaml") if not path.stem[0].isalnum()]


def test_the_only_groups_are_those_of_a_job_and_whole_experiments():
    """Launchers are chosen by hydra/launcher, as Hydra documents it."""
    assert {path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()} == {*GROUPS, "experiment"}


def test_a_run_from_before_there_was_tuning_is_built_without(tmp_path):
    cfg = composed()
    with open_dict(cfg):
        del cfg.tune
    assert build_job(cfg, tmp_path).tune == Tuning()
