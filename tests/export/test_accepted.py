"""What is accepted before the search is written after it, and what a format cannot hold is refused before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from evopress.compressors.base import Compressor
from evopress.compressors.float import Float
from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.export import (
    Export,
    PlannedModel,
    UnsupportedExportError,
    check_export,
    check_export_of_model,
    write_checkpoints,
)
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from evopress.space.build import layer_space
from evopress.space.settings import SpaceSettings
from tests.exports import TOKENS, compressed
from tests.marks import slow_except
from tests.tiny_models import ALL_FAMILIES, config, tokenizer

pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")

SYMMETRIC = RTN(bits=(2, 3, 5), group_size=32, symmetric=True, scale_dtype="float32")
ZERO_POINTS = RTN(bits=(4, 8), group_size=32, scale_dtype="float32")
EXACT = RTN(bits=(4, 8), group_size=32, symmetric=True)


@dataclass(frozen=True)
class ExportCase:
    """Settings of an export, and the compressor and the space that it is for."""

    export: Mapping[str, object]
    compressor: Compressor
    space: Mapping[str, str] = field(default_factory=dict)


EXPORTS = {
    "compressed_tensors": ExportCase({"formats": ["compressed_tensors"]}, SYMMETRIC),
    "vllm": ExportCase(
        {"formats": ["compressed_tensors"], "engine": "vllm"}, ZERO_POINTS, {"tie": "engine", "drops": "block"}
    ),
    "number formats": ExportCase({"formats": ["compressed_tensors"]}, Float(levels=("bf16", "fp8", "int8"))),
    "gguf": ExportCase({"formats": ["gguf"]}, GGUF(types=("Q8_0", "Q4_0"))),
    "gguf of codes": ExportCase({"formats": ["gguf"], "embeddings": "Q8_0"}, EXACT, {"drops": "block"}),
    "nemotron_nas": ExportCase({"formats": ["nemotron_nas"]}, EXACT, {"tie": "engine", "drops": "subblock"}),
}
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    **{family: (family, {}) for family in ALL_FAMILIES},
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True, "intermediate_size": 256}),
    "tied head": ("qwen3", {"tie_word_embeddings": True}),
    "one key and value": ("llama", {"head_dim": 8, "num_key_value_heads": 1, "intermediate_size": 256}),
    "48 wide": ("llama", {"hidden_size": 48}),
    "112 wide MLP": ("llama", {"intermediate_size": 112}),
    "more tokens": ("llama", {"vocab_size": 301}),
    "sliding window": ("mistral", {"sliding_window": 8, "intermediate_size": 256}),
    "yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 2.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 128,
            }
        },
    ),
}

QUICK = ("llama", "opt", "gemma3_text", "qwen3_moe", "deepseek_v3", "gemma3", "biases", "tied head", "112 wide MLP")
"""Variants whose tests are not slow: models of many kinds, and widths that are refused."""


@cache
def model_of(variant: str) -> LanguageModel:
    """Shared by the tests of all exports, which leave it as it is."""
    family, changes = VARIANTS[variant]
    made = config(family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(made).from_dict({**made.to_dict(), **changes}), dtype=torch.float32)
    return wrap_model(model, tokenizer(), variant)


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("variant", slow_except(VARIANTS, QUICK))
def test_what_is_accepted_before_the_search_is_written_after_it(name, variant, tmp_path: Path):
    case, lm = EXPORTS[name], model_of(variant)
    settings = Export(dtype="float32", **case.export)
    space_settings = SpaceSettings(**{"trade": "any", **case.space})
    check_export(settings, case.compressor, space=space_settings)
    try:
        space = layer_space(lm, case.compressor, space_settings)
        planned = PlannedModel(lm=lm, compressor=case.compressor, space=space, window=TOKENS.shape[1])
        check_export_of_model(settings, planned)
    except UnsupportedExportError:
        return
    except ValueError as error:
        assert "multiple of 32" in str(error)  # GGUF's block types have no levels for such layers
        return
    tie, drops = case.space.get("tie", "none"), case.space.get("drops", "none")
    searched = compressed(lm, case.compressor, tmp_path / "levels", tie=tie, drops=drops)
    write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=tmp_path)
