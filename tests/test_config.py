"""Every option of every group composes, is whole, and says what is wrong with it."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

import evopress
from evopress.config import CONFIG_FOLDER, GROUPS, build_job, suggest_keys

OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONFIG_FOLDER.glob("*/*.yaml")
    if path.parent.name in GROUPS and not path.stem.startswith("_")
)
FILLED_IN = {
    "data=text": [f"data.source={CONFIG_FOLDER}/text.txt"],
    "budget=size": ["budget.target=80MB"],
    "search=profile": ["search.path=profile.txt"],
    "model=hf": ["model.path=some/model"],
}
PACKAGE = Path(evopress.__file__).parent


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_field_of_a_class_stands_in_its_yaml(option):
    group = option.partition("=")[0]
    node = composed(option)[group]
    known = (
        {field.name for field in fields(get_class(node._target_))}
        if node._target_ != "evopress.runtime.tracking.Tracker"
        else set()
    )
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


@pytest.mark.parametrize("compress", ["gptq", "sparsegpt", "drop", "gguf"])
def test_the_search_is_guided_unless_another_is_chosen(compress):
    assert composed("model=mistral7b", f"compress={compress}").search._target_ == "evopress.search.guided.Guided"


def test_the_search_of_the_paper_has_its_settings():
    cfg = composed("model=mistral7b", "compress=gptq", "budget=3bit", "search=evolution")
    OmegaConf.to_container(cfg.search, throw_on_missing=True)
    assert cfg.model.path == "mistralai/Mistral-7B-v0.3"
    assert (cfg.search.generations, cfg.search.offspring) == (150, 128)
    assert [(stage.survivors, stage.tokens) for stage in cfg.search.stages] == [(16, 2048), (4, 16384), (1, 131072)]
    assert (cfg.data.source, cfg.data.calibration_tokens, cfg.data.search_tokens) == ("fineweb_edu", 2**23, 2**19)


@pytest.mark.parametrize("experiment", sorted(path.stem for path in CONFIG_FOLDER.glob("experiment/*.yaml")))
def test_every_experiment_is_a_job_whose_parts_fit(experiment, tmp_path):
    job = build_job(composed(f"experiment={experiment}"), tmp_path)
    job.budget.check(job.compress.metric, job.compress.span)
    assert experiment.startswith(job.model.name)
    assert job.eval.datasets == ["wikitext2", "c4"]


def test_a_misspelled_key_is_told_with_the_nearest_one():
    (line,) = suggest_keys(["model=smollm2", "search.generatons=3", "hydra.run.dir=x"])
    assert "search.generatons is not a setting: did you mean search.generations?" in line


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("hydra", {"run.py", "config.py"}),
        ("omegaconf", {"run.py", "config.py"}),
        ("wandb", {"tracking.py"}),
        ("pickle", set()),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(module, allowed):
    found = {path.name for path in PACKAGE.rglob("*.py") if module in _imported(path)}
    assert found <= allowed


def test_nothing_loads_files_that_can_run_code():
    calls = [
        f"{path.name}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "eval", "exec", "yaml.load")
    ]
    assert not calls


def _imported(path: Path) -> set[str]:
    """Top-level packages and evopress modules that a file imports, outside `if TYPE_CHECKING`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            found |= {name.split(".")[0], ".".join(name.split(".")[:2])}
    return found
