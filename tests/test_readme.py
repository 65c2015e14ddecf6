"""What the README says exists, and what it lists runs: on a tiny random model, with little text and short searches."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from transformers import AutoConfig, AutoModelForCausalLM

from evopress.config import CONFIG_FOLDER, GROUPS, build
from evopress.inspection.__main__ import main as inspect
from evopress.job import Job
from evopress.pipeline import run
from evopress.report.__main__ import main as report
from tests.test_api import NOTEBOOK
from tests.tiny_models import config, tokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TEXTS = sorted([ROOT / "README.md", *ROOT.glob("experiments/**/README.md")])
RUN = "python -m evopress.run"

LITTLE_TEXT = ["window=32", "calibration_tokens=128", "search_tokens=256", "validation_tokens=64", "test_tokens=64"]
ONE_STAGE = "search.stages=[{survivors: 1, tokens: 32}]"
SHORT = {
    "Evolution": ["search.generations=1", "search.offspring=2", "search.initial_candidates=2", ONE_STAGE],
    "Guided": ["search.rounds=1", "search.table_tokens=32", "search.line_tokens=32", "search.refinements=1"],
    "Climb": ["search.steps=2", "search.tokens=32"],
}
"""What makes a search short, by its class."""

PLENTY = {"budget.target=110MB": "budget.target=300KB", "budget.target=90MB": "budget.target=300KB"}
"""What a tiny model has to be given in place of what the README asks for."""

ELSEWHERE = {
    f"{RUN} resume=": "tests/test_run.py",
    "torchrun ": "tests/test_processes.py",
    "accelerate launch ": "tests/test_processes.py",
    "make ": "Makefile",
    "pip install ": "Makefile",
}
"""Where commands are run that are not run here."""


def listings(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    level, rest = re.search(rf"^(##+) {title}\n(.*)", README, re.MULTILINE | re.DOTALL).groups()
    return re.split(rf"^#{{2,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def lines(path: Path) -> list[str]:
    """Commands in listings, continued lines joined and comments left out."""
    text = path.read_text()
    indented = "\n".join(line[4:] if line.startswith("    ") else "" for line in text.splitlines())
    listed = "\n".join(listings(text, "sh") or [indented]).replace("\\\n", " ").splitlines()
    bare = [line.partition("  #")[0].strip() for line in listed]
    return [" ".join(line.split()) for line in bare if line and not line.startswith("#")]


def overrides_of(command: str) -> list[str]:
    """Hydra overrides of a command; of a sweep the first value each."""
    words = shlex.split(command.partition("evopress.run")[2])
    words = [word for word in words if "=" in word]
    return [word if "[" in word else word.partition(",")[0] for word in words]


STUDIES = [(path.parent.name, line) for path in TEXTS[1:] for line in lines(path) if line.startswith(RUN)]
COMMANDS = [line for line in lines(ROOT / "README.md") if RUN in line and not line.startswith(tuple(ELSEWHERE))]
(TOGETHER,) = (line for line in COMMANDS if "model=mine" in line and "tracking=csv" in line)


@pytest.mark.parametrize(("where", "command"), STUDIES)
def test_every_command_of_a_study_composes(where, command):
    words = [word for word in overrides_of(command) if not word.startswith("resume=")]
    configuration(words)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A user's folder: the README's own files in it, a model, notes, and the text files that commands name."""
    folder = tmp_path_factory.mktemp("desk")
    for language in ("python", "yaml"):
        for listing in listings(section("Bring your own"), language):
            name = re.match(r"# (\S+)\n", listing)[1]
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(listing)
    wide = {"intermediate_size": 256}  # what nemotron_nas needs
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config("llama").to_dict(), **wide}))
    model.save_pretrained(folder / "models/mine")
    tokenizer().save_pretrained(folder / "models/mine")
    topics = import_module("pydoc_data.topics").topics
    (folder / "notes").mkdir()
    for name in sorted(topics)[:20]:
        (folder / "notes" / f"{name}.md").write_text(topics[name])
    for name in ("wikitext2_valid.txt", "wikitext2_test.txt"):
        (folder / name).write_text("\n".join(map(str, topics.values())))
    subprocess.run([sys.executable, "my_text.py"], cwd=folder, check=True)
    return folder


def small(command: str, folder: Path) -> list[str]:
    """The overrides of a command for a tiny model that is not trained, with little text and a short search."""
    words = [PLENTY.get(word, word) for word in overrides_of(command)]
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if given.get("model", "tiny") in ("tiny", "smollm2"):
        words += [] if "experiment" in given else [f"{key}=demo" for key in ("search",) if key not in given]
    if given.get("model") != "mine":
        words = [word for word in words if not word.startswith("model")]
        words += ["model=hf", "model.name=stand-in", "model.path=models/mine"]
    words += [] if "data" in given else ["data=pydoc"]
    words += ["eval=default"] if "experiment" in given else []
    words += ["model.max_perplexity=1e9", "model.device=cpu", "outputs=outputs"]
    words += [f"hydra.searchpath=[file://{folder}/my_conf]"]
    words += [f"data.{amount}" for amount in LITTLE_TEXT]
    target = configuration(words).search["_target_"]
    return words + SHORT.get(target.rpartition(".")[2], [])


def configuration(words: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("config", words)


def job_of(command: str, desk: Path, run_folder: Path) -> Job:
    return build(configuration(small(command, desk)), run_folder)


@pytest.fixture
def at_desk(desk, monkeypatch) -> Path:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("evopress.pipeline.write_report", lambda folder: folder / "results.json")  # it takes longest
    return desk


@pytest.mark.parametrize("command", [line for line in COMMANDS if line != TOGETHER])
def test_every_command_runs(command, at_desk, tmp_path):
    job = job_of(command, at_desk, tmp_path / "run")
    run(job)
    if "plan" in job.stages:
        return
    assert json.loads((tmp_path / "run/results.json").read_text())["done"]
    for name in job.export.formats:
        assert (tmp_path / "run/checkpoints" / name / "README.md").is_file()
    if "tracking=csv" in command:
        assert ",search/best_fitness," in (tmp_path / "run/metrics.csv").read_text()
    if "model=mine" in command:
        assert job.model.family.layers[1] == ("self_attn.o_proj",)


def test_all_that_is_ones_own_runs_as_the_program_itself(desk, tmp_path):
    words = [word for word in small(TOGETHER, desk) if not word.startswith("hydra.searchpath")]
    module_and_conf = shlex.split(TOGETHER.partition(" python ")[2])[:4]  # -m evopress.run --config-dir my_conf
    command = [sys.executable, *module_and_conf]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f".:{ROOT}"}
    done = subprocess.run(
        [*command, *words, f"hydra.run.dir={tmp_path}/run"], cwd=desk, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "run/metrics.csv").is_file()
    settings = yaml.safe_load((tmp_path / "run/.hydra/config.yaml").read_text())
    assert settings["compress"]["_target_"] == "half_zero.HalfZero"
    assert settings["search"]["_target_"] == "climb.Climb"
    assert settings["data"]["source"] == "notes.jsonl"


def test_runs_are_inspected_and_compared_as_it_says(at_desk, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    run(job_of(f"{RUN} search=uniform", at_desk, first))
    shutil.copytree(first, second)
    listed = {line.partition("#")[0].strip() for line in lines(ROOT / "README.md")}
    assert {"python -m evopress.inspection PATH", "python -m evopress.report DIR DIR"} <= listed
    assert inspect([str(first)]) == 0
    assert report([str(first), str(second)]) == 0
    assert Path("comparison.html").is_file()


def test_every_other_command_is_run_elsewhere():
    texts = {name: (ROOT / name).read_text() for name in set(ELSEWHERE.values())}
    assert "resume=" in texts["tests/test_run.py"] and "torch.distributed.run" in texts["tests/test_processes.py"]
    here = ("python -m evopress.inspection", "python -m evopress.report", "python my_text.py")
    for line in lines(ROOT / "README.md"):
        assert line in COMMANDS or line.startswith((*ELSEWHERE, *here)), f"nothing runs {line!r}"
        if line.startswith(("torchrun", "accelerate")):
            configuration(overrides_of(line))


def test_what_is_to_be_installed_is_what_is_tested():
    makefile, pins = (ROOT / "Makefile").read_text(), (ROOT / "constraints.txt").read_text().splitlines()
    project = (ROOT / "pyproject.toml").read_text()
    for line in lines(ROOT / "README.md"):
        if line.startswith("pip install"):
            for extra in re.findall(r"\[([\w,]+)\]", line):
                assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in extra.split(","))
            for pin in re.findall(r"\S+==\S+", line):
                assert pin in pins and f"--no-deps {pin.partition('==')[0]}" in makefile


def test_the_python_listing_is_the_executed_notebook():
    (listing,) = listings(section("From Python"), "python")
    cell = "".join(next(c["source"] for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"))
    ours, theirs = (re.sub(r"^name = .*$", "name = …", text.strip(), flags=re.MULTILINE) for text in (listing, cell))
    assert ours == theirs


def test_the_papers_figures_are_those_of_the_experiment_files():
    rows = dict(re.findall(r"^\| `(\w[\w.]*)` (\|.*)$", section("The paper's tables"), re.MULTILINE))
    files = {path.stem: path.read_text() for path in CONFIG_FOLDER.glob("experiment/*.yaml")}
    assert rows.keys() == files.keys()
    for name, text in files.items():
        figures = re.findall(r"[\d.]+ / [\d.]+\d", text.partition("in the paper:")[2].partition("\n")[0])
        assert figures == re.findall(r"[\d.]+ / [\d.]+\d", rows[name]), name


def test_every_option_is_listed_and_every_listed_option_exists():
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE))
    for group in ("model", "compress", "budget", "search", "data", "tracking", "experiment"):
        options = {path.stem for path in CONFIG_FOLDER.glob(f"{group}/*.yaml") if not path.stem.startswith("_")}
        listed = {word.split()[0] for word in re.findall(r"`([^`]+)`", table[group])}
        assert options <= listed, f"{group}: {options - listed} is not listed"
        unknown = {word for word in listed - options if not re.match(rf"({group}|{'|'.join(GROUPS)})[.=]", word)}
        assert not unknown, f"{group}: {unknown} does not exist"


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name for path in TEXTS for name in re.findall(r"(?:^    |^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)
    }
    assert named <= targets


def test_every_link_leads_somewhere():
    for path in TEXTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path} links to {target}"


def test_every_link_into_the_text_meets_a_heading():
    headings = re.findall(r"^##+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


def test_the_project_speaks_of_itself_alone():
    words = ("/work/", "../shared", "/tmp/", "subagent")
    for path in [*ROOT.rglob("*.py"), *ROOT.rglob("*.md"), *ROOT.rglob("*.yaml"), *ROOT.rglob("*.sh")]:
        if ".venv" in path.parts or "outputs" in path.parts or ".engines" in path.parts or path == Path(__file__):
            continue
        found = [word for word in words if word in path.read_text()]
        assert not found, f"{path} mentions {found}"


def test_the_table_of_the_comparison_is_that_of_its_records():
    folder = ROOT / "experiments" / "compare"
    spec = importlib.util.spec_from_file_location("collect", folder / "collect.py")
    assert spec is not None and spec.loader is not None
    collect = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(collect)
    rows = json.loads((folder / "results.json").read_text())
    assert len(rows) > 30
    assert collect.table(rows) in (folder / "README.md").read_text()
