"""`evopress.compress`: the whole job from Python."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import evopress
from evopress.api import DEMO_DATA, DEMO_SEARCH
from evopress.compressors.gptq import GPTQ
from evopress.config import CONFIG_FOLDER
from evopress.data.settings import Data
from evopress.export import Export
from evopress.models.source import ModelSource
from evopress.search.baselines.uniform import Uniform
from evopress.space.budget import Budget
from tests.tiny_models import save_tiny, tiny

NOTEBOOK = Path(__file__).parents[1] / "experiments/python_use/compress.ipynb"
TEXT = Data(source="pydoc", window=32, calibration_tokens=256, search_tokens=256, validation_tokens=64, test_tokens=128)
SETTINGS = dict(
    budget=Budget(metric="bits", target=3),
    compressor=GPTQ(bits=[2, 3, 4], group_size=32),
    search=Uniform(),
    data=TEXT,
)


@pytest.fixture
def untrained(monkeypatch):
    """Skip the check of the dense model, which would refuse random weights."""
    monkeypatch.setattr("evopress.preparation.check_dense", lambda *args, **settings: None)


def test_a_model_in_memory_is_compressed_exported_and_loaded_back(tmp_path, untrained):
    lm = tiny("llama")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    result = evopress.compress(
        lm.model, lm.tokenizer, folder=tmp_path, export=Export(formats=["hf"], dtype="float32"), **SETTINGS
    )
    assert result.results["budget"]["achieved"] == 3
    assert all((lm.model.state_dict()[name] == tensor).all() for name, tensor in before.items())
    loaded = evopress.load(result.folder / "checkpoints" / "hf")
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in lm.model.parameters())
    assert not (loaded.model.layers[0].mlp.up_proj.weight == lm.model.model.layers[0].mlp.up_proj.weight).all()
    assert (loaded.model.embed_tokens.weight == lm.model.model.embed_tokens.weight).all()


@pytest.mark.slow
def test_a_model_from_a_folder_gives_the_same_results_as_in_memory(tmp_path, untrained):
    save_tiny("llama", tmp_path / "model")
    source = ModelSource(name="tiny", path=str(tmp_path / "model"), dtype="float32")
    by_path = evopress.compress(source, folder=tmp_path / "a", **SETTINGS)
    lm = tiny("llama")
    in_memory = evopress.compress(lm.model, lm.tokenizer, folder=tmp_path / "b", **SETTINGS)
    assert by_path.results["searched"] == in_memory.results["searched"]


def test_a_model_in_memory_needs_its_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="needs its tokenizer"):
        evopress.compress(tiny("llama").model, folder=tmp_path, **SETTINGS)


def test_importing_the_package_imports_no_slow_library():
    code = (
        "import sys, evopress, evopress.config; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_defaults_are_those_of_the_demo_configuration():
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("config", ["model=smollm2"])
    assert instantiate(cfg.search, _convert_="all") == DEMO_SEARCH
    assert instantiate(cfg.data, _convert_="all") == DEMO_DATA
    assert instantiate(cfg.compress, _convert_="all") == GPTQ()


@pytest.mark.slow
def test_the_notebook_runs_and_shows_the_output_of_a_run(tmp_path, monkeypatch, capsys):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    shown = ["".join(text for output in cell["outputs"] for text in output["text"]) for cell in cells]
    assert all(cell["execution_count"] for cell in cells) and all(shown)
    assert kl_by_model(shown[0])["searched"] < kl_by_model(shown[0])["uniform"]
    assert len("".join(cells[0]["source"]).partition("\n\nname =")[2].splitlines()) < 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evopress.api.DEMO_DATA", TEXT)
    monkeypatch.setattr("evopress.api.DEMO_SEARCH", Uniform())
    names: dict[str, object] = {}
    for cell, before in zip(cells, shown, strict=True):
        exec("".join(cell["source"]), names)
        assert len(capsys.readouterr().out.splitlines()) >= min(3, len(before.splitlines()))
    result = names["compressed"]
    assert result.results["model"] == "LlamaForCausalLM"
    assert (result.folder / "report.html").is_file()


def kl_by_model(text: str) -> dict[str, float]:
    return {line.split()[0]: float(line.rpartition(": ")[2].rstrip("}")) for line in text.splitlines()}
