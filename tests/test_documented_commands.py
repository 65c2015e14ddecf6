"""Every command and listing of the documents runs: on a tiny random model, with little text and short searches.

That there is as much text as a command asks for is tested with the amounts of the command itself. A stand-in replaces
the hub.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import evopress
from evopress.config import CONFIG_FOLDER, build_job
from evopress.data.sources import TOPICS
from evopress.data.splits import SPLITS, load_splits
from evopress.evaluation.data_sets import load_test_sets
from evopress.export.registry import chosen_formats
from evopress.inspection.__main__ import main as inspect
from evopress.job import Job
from evopress.pipeline import run_job
from evopress.report.__main__ import main as report
from tests import hub
from tests.documents import (
    FORMAT_NAMES,
    FORMAT_ROWS,
    PAGES,
    ROOT,
    RUN,
    STUDIES,
    command_lines,
    listings,
    overrides_of,
    page,
    settings_in,
)
from tests.engines.stand_ins import stand_in
from tests.test_api import NOTEBOOK
from tests.tiny_models import config, tokenizer

SHIPPED_MODEL = Path(evopress.__file__).parent / "assets/tiny"
LITTLE_TEXT = ["window=32", "calibration_tokens=128", "search_tokens=256", "validation_tokens=64", "test_tokens=64"]
ONE_STAGE = "search.stages=[{survivors: 1, tokens: 32}]"
SHORT = {
    "Evolution": ["search.generations=1", "search.offspring=2", "search.initial_candidates=2", ONE_STAGE],
    "Guided": ["search.rounds=1", "search.table_tokens=32", "search.line_tokens=32", "search.refinements=1"],
    "Climb": ["search.steps=2", "search.tokens=32"],
}
"""What makes a search short, by its class."""

SMALL_TARGETS = {f"budget.target={size}": "budget.target=300KB" for size in ("110MB", "92MB", "90MB")}
"""File sizes for a tiny model, in place of those in the documents."""

RUN_ELSEWHERE = {
    f"{RUN} resume=": "tests/test_run.py",
    "torchrun ": "tests/test_processes.py",
    "accelerate launch ": "tests/test_processes.py",
    "make ": "Makefile",
    "pip install ": "Makefile",
}
"""Which file runs the commands that are not run here."""

NOT_RUN = ("export HF_TOKEN=", "hf auth login")
"""They need an account."""

COMMANDS = list(
    dict.fromkeys(
        line
        for path in PAGES
        for line in command_lines(path)
        if RUN in line and "--cfg" not in line and not line.startswith(tuple(RUN_ELSEWHERE))
    )
)
(ALL_TOGETHER,) = (line for line in COMMANDS if "model=mine" in line and "tracking=csv" in line)


def test_every_command_of_a_study_composes():
    for line in (line for path in STUDIES for line in command_lines(path) if line.startswith(RUN)):
        configuration([word for word in overrides_of(line) if not word.startswith("resume=")])


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A user's folder: the files of the page on your own parts, a model, notes, and the texts that commands name.

    A stand-in takes the place of llama.cpp.
    """
    folder = tmp_path_factory.mktemp("desk")
    stand_in("llama_cpp", folder / ".engines/llama/bin")
    for language in ("python", "yaml"):
        for listing in listings(page("bring_your_own").read_text(), language):
            name = re.match(r"# (\S+)\n", listing)[1]
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(listing)
    wide = {"intermediate_size": 256}  # what nemotron_nas needs
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config("llama").to_dict(), **wide}))
    model.save_pretrained(folder / "models/mine")
    tokenizer().save_pretrained(folder / "models/mine")
    topics = json.loads(TOPICS.read_text(encoding="utf-8"))
    (folder / "notes").mkdir()
    for name in sorted(topics)[:40]:
        (folder / "notes" / f"{name}.md").write_text(topics[name])
    words_of_wikitext = {"wikitext2_valid.txt": 217_646, "wikitext2_test.txt": 245_569}
    for name, num_words in words_of_wikitext.items():
        (folder / name).write_text(hub.words(name, num_words))
    subprocess.run([sys.executable, "my_text.py"], cwd=folder, check=True)
    return folder


def with_tiny_model(command: str, folder: Path) -> list[str]:
    """The overrides of a command for a tiny model that is not trained."""
    words = [SMALL_TARGETS.get(word, word) for word in overrides_of(command)]
    overridden = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if overridden.get("model", "tiny") in ("tiny", "smollm2") and "experiment" not in overridden:
        words += [] if "search" in overridden else ["search=demo"]
        words += [] if "data" in overridden else ["data=pydoc"]
    if overridden.get("model") != "mine":
        words = [word for word in words if not word.startswith("model") or word.startswith("model.dtype=")]
        words += ["model=hf", "model.name=stand-in", "model.path=models/mine"]
    words += ["model.max_perplexity=1e9", "model.device=cpu", "outputs=outputs"]
    return [*words, f"hydra.searchpath=[file://{folder}/my_conf]"]


def small(command: str, folder: Path) -> list[str]:
    """The overrides of a command for a tiny model, with little text and a short search."""
    words = with_tiny_model(command, folder) + [f"data.{amount}" for amount in LITTLE_TEXT]
    words += ["eval.test_tokens=64", "eval.limit=2"]
    target = configuration(words).search["_target_"]
    return words + SHORT.get(target.rpartition(".")[2], [])


def configuration(words: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("config", words)


def job_of(command: str, desk: Path, run_folder: Path) -> Job:
    return build_job(configuration(small(command, desk)), run_folder)


@pytest.fixture
def at_desk(desk, monkeypatch) -> Path:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("datasets.load_dataset", hub.load_dataset)
    monkeypatch.setattr(
        "evopress.evaluate_stage.write_report", lambda folder: folder / "results.json"
    )  # it takes longest
    return desk


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in COMMANDS if line != ALL_TOGETHER])
def test_every_command_runs(command, at_desk, tmp_path):
    job = job_of(command, at_desk, tmp_path / "run")
    run_job(job)
    if "plan" in job.stages:
        return
    if job.targets:
        assert (tmp_path / "run/front.csv").is_file()
        return
    assert json.loads((tmp_path / "run/results.json").read_text())["done"]
    for checkpoint_format in chosen_formats(job.export):
        assert (tmp_path / "run/checkpoints" / checkpoint_format.name / "README.md").is_file()
    if "tracking=csv" in command:
        assert ",search/best_fitness," in (tmp_path / "run/metrics.csv").read_text()
    if "model=mine" in command:
        assert job.model.family.layers[1] == ("self_attn.o_proj",)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_finds_all_the_text_that_it_asks_for(command, at_desk, tmp_path):
    job = build_job(configuration(with_tiny_model(command, at_desk)), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_MODEL)
    if job.data.source != "pydoc" and "notes" not in job.data.source:
        tokenizer = hub.SplittingTokenizer()  # for the words of the stand-in, fast enough for millions of them
    splits = load_splits(job.data, tokenizer, at_desk / "cache")
    load_test_sets(splits, job.data, test_sets=job.test_sets, tokenizer=tokenizer, cache=at_desk / "cache")
    for split in SPLITS:
        num_tokens = getattr(job.data, f"{split}_tokens")
        assert num_tokens is None or getattr(splits, split).numel() >= num_tokens


@pytest.mark.slow
@pytest.mark.parametrize("row", FORMAT_ROWS, ids=[row[0] for row in FORMAT_ROWS])
def test_every_export_runs_where_the_formats_page_says_that_it_ran(row, at_desk, tmp_path):
    """Exporting includes reading the checkpoint back and comparing it with the searched model."""
    settings = " ".join(settings_in(row[0]))
    formats = [name for name, cell in zip(FORMAT_NAMES, row[1:], strict=True) if cell.split(",")[0].startswith("ran")]
    has_levels = any(name in settings for name in ("gptq", "gguf", "float"))
    budget = "budget=size budget.target=300KB" if has_levels else ""
    search = "search=random search.candidates=2 search.tokens=32"
    dtype = "" if "model.dtype" in settings else "model.dtype=float32"
    exports = f"export.formats=[{','.join(formats)}] export.pre_tokenizer=smollm {dtype}"
    run_job(job_of(f"{RUN} model=smollm2 {settings} {budget} {search} {exports}", at_desk, tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == set(formats)


@pytest.mark.slow
def test_all_parts_of_a_user_work_together_as_a_program(desk, tmp_path):
    words = [word for word in small(ALL_TOGETHER, desk) if not word.startswith("hydra.searchpath")]
    module_and_conf = shlex.split(ALL_TOGETHER.partition(" python ")[2])[:4]  # -m evopress.run --config-dir my_conf
    command = [sys.executable, *module_and_conf]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f".:{ROOT}"}
    finished = subprocess.run(
        [*command, *words, f"hydra.run.dir={tmp_path}/run"], cwd=desk, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr + finished.stdout
    assert (tmp_path / "run/metrics.csv").is_file()
    settings = yaml.safe_load((tmp_path / "run/.hydra/config.yaml").read_text())
    assert settings["compress"]["_target_"] == "half_zero.HalfZero"
    assert settings["search"]["_target_"] == "climb.Climb"
    assert settings["data"]["source"] == "notes.jsonl"


@pytest.mark.slow
def test_runs_are_inspected_and_compared_with_the_documented_commands(at_desk, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    run_job(job_of(f"{RUN} search=uniform", at_desk, first))
    shutil.copytree(first, second)
    documented = {line for path in PAGES for line in command_lines(path)}
    assert {"python -m evopress.inspection PATH", "python -m evopress.report DIR DIR"} <= documented
    assert inspect([str(first)]) == 0
    assert report([str(first), str(second)]) == 0
    assert Path("comparison.html").is_file()


def test_every_other_command_is_run_elsewhere():
    texts = {name: (ROOT / name).read_text() for name in set(RUN_ELSEWHERE.values())}
    assert "resume=" in texts["tests/test_run.py"] and "torch.distributed.run" in texts["tests/test_processes.py"]
    here = ("python -m evopress.inspection", "python -m evopress.report", "python my_text.py", *NOT_RUN)
    for line in (line for path in PAGES for line in command_lines(path)):
        if "--cfg" in line or line.startswith(("torchrun", "accelerate")):
            configuration(overrides_of(line))
        else:
            assert line in COMMANDS or line.startswith((*RUN_ELSEWHERE, *here)), f"nothing runs {line!r}"


def test_the_python_listing_is_the_executed_notebook():
    (listing,) = listings(page("python").read_text(), "python")
    cell = "".join(next(c["source"] for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"))
    ours, theirs = (re.sub(r"^name = .*$", "name = …", text.strip(), flags=re.MULTILINE) for text in (listing, cell))
    assert ours == theirs
