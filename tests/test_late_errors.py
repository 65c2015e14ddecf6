"""Errors that would end a run hours after its start are raised before the weights of its model are read.

Every job of the table has one. Nothing is written for it, neither a database nor a run directory, and its plan alone
ends with the same message.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from evopress.compressors.drop import Drop
from evopress.compressors.float import Float
from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.compressors.sparsegpt import SparseGPT
from evopress.evaluation.eval_settings import Eval
from evopress.export import Export
from evopress.job import Job
from evopress.models.source import ModelSource
from evopress.pipeline import run_job
from evopress.runtime.tracking import WandB
from evopress.search.baselines.additive import Additive
from evopress.search.baselines.owl import Owl
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from tests.evaluation.task_files import write_tasks
from tests.jobs import DATA, SEARCH, small_job
from tests.tiny_models import config, tokenizer

THIRD = Budget(metric="drop", target=1 / 3)
FOUR_BITS = Budget(metric="bits", target=4)
SYMMETRIC = RTN(bits=(2, 4), group_size=32, symmetric=True)
BLOCK_TYPES = GGUF(types=("Q8_0", "Q4_0"), embeddings=False)
EQUAL_TO_BLOCK_TYPES = RTN(bits=(4, 8), group_size=32, symmetric=True)
JOINT = {"trade": "any", "drops": "block"}
HALVES = {"trade": "any", "drops": "subblock"}
YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}


def bpe(pre_tokenizer: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    backend = tokenizer().backend_tokenizer
    backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def words() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))


TOKENIZERS = {
    "words": words,
    "whitespace": lambda: bpe(pre_tokenizers.Whitespace()),
    "no special tokens": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
}


@dataclass(frozen=True)
class Late:
    """A job: `changes` of a small one that runs, on a model with `config` and another `tokenizer`; and its message."""

    message: str
    family: str = "llama"
    config: Mapping[str, object] = field(default_factory=dict)
    tokenizer: str = ""
    changes: Mapping[str, object] = field(default_factory=dict)


def export(name: str, message: str, *, settings: Mapping[str, object] | None = None, **parts) -> Late:
    """A job that exports to one format. Of `parts`, those of `Late` are of the model, the others of the job."""
    of_model = {key: parts.pop(key) for key in ("family", "config", "tokenizer") if key in parts}
    return Late(message, **of_model, changes={"export": Export(formats=[name], **(settings or {})), **parts})


def drops(name: str, message: str, *, granularity: str = "subblock", **parts) -> Late:
    return export(name, message, compress=Drop(granularity=granularity), budget=THIRD, **parts)


def tasks(message: str, **settings) -> Late:
    return Late(message, changes={"eval": Eval(include_path="{tasks}", **settings)})


WIDE = {"intermediate_size": 256}
LATE_ERRORS: dict[str, Late] = {
    # exports: what a format cannot hold
    "hf, half blocks": drops("hf", r"leaves out whole blocks only, .*set compress\.granularity=block"),
    "hf, half blocks with levels": export("hf", r"set space\.drops=block", space=SpaceSettings(**HALVES)),
    "hf, code of the model": drops("hf", "this one runs code that came with it", family="own", granularity="block"),
    "compressed_tensors, experts": export(
        "compressed_tensors", r"no mixtures of experts.*\[hf\]", family="mixtral", compress=SYMMETRIC
    ),
    "compressed_tensors, experts, vllm": export(
        "compressed_tensors",
        "no mixtures of experts",
        family="qwen3_moe",
        settings={"engine": "vllm"},
        compress=EQUAL_TO_BLOCK_TYPES,
        budget="bits",
        space=SpaceSettings(tie="engine"),
    ),
    "compressed_tensors, widths of vllm": export(
        "compressed_tensors",
        r"compress\.bits contains \[2\]: set compress\.bits=\[4,8\]. Other widths run only on CUDA with vLLM",
        settings={"engine": "vllm"},
        compress=SYMMETRIC,
        space=SpaceSettings(tie="engine"),
    ),
    "compressed_tensors, rounded scales": export(
        "compressed_tensors", r"set compress\.scale_dtype=bfloat16", config={"dtype": "bfloat16"}, compress=SYMMETRIC
    ),
    "compressed_tensors, FP4 in float32": export(
        "compressed_tensors", r"decodes NVFP4 in bfloat16: set model\.dtype=bfloat16", compress=Float(), budget="bits"
    ),
    "compressed_tensors, blocks of fused layers": export(
        "compressed_tensors",
        r"q_proj has 64 rows, and vLLM runs it as one with others, .* leave fp8_block out of compress\.levels",
        settings={"engine": "vllm"},
        compress=Float(levels=("fp8_block", "fp8")),
        budget="bits",
        space=SpaceSettings(tie="engine"),
    ),
    "compressed_tensors, zero points": export(
        "compressed_tensors",
        r"zero points of model\.layers\.0\.self_attn\.k_proj, 4 rows of 8 bits, do not fill two or more",
        settings={"engine": "vllm"},
        config={"head_dim": 4, "num_key_value_heads": 1},
        compress=RTN(bits=(4, 8), group_size=32),
        budget="bits",
        space=SpaceSettings(tie="engine"),
    ),
    "gguf, architecture": export("gguf", "this model is phi3", family="phi3", compress=BLOCK_TYPES, budget="bits"),
    "gguf, activation": export("gguf", "has gelu", config={"hidden_act": "gelu"}, compress=BLOCK_TYPES, budget="bits"),
    "gguf, rope": export(
        "gguf", "does not support yarn", config={"rope_parameters": YARN}, compress=BLOCK_TYPES, budget="bits"
    ),
    "gguf, sliding window": export(
        "gguf",
        r"sliding window of 8 .*windows of 32: set data\.window=8",
        family="mistral",
        config={"sliding_window": 8},
        compress=BLOCK_TYPES,
        budget="bits",
    ),
    "gguf, tokenizer": export(
        "gguf", "holds tokenizers with byte-pair encoding", tokenizer="words", compress=BLOCK_TYPES, budget="bits"
    ),
    "gguf, tokenizer with a named rule": export(
        "gguf",
        "holds tokenizers with byte-pair encoding",
        tokenizer="words",
        settings={"pre_tokenizer": "gpt-2"},
        compress=BLOCK_TYPES,
        budget="bits",
    ),
    "gguf, splitting rule": export(
        "gguf", r"set export\.pre_tokenizer", tokenizer="whitespace", compress=BLOCK_TYPES, budget="bits"
    ),
    "gguf, width of a layer": export(
        "gguf",
        r"blocks of 32 weights, but model\.layers\.0\.mlp\.down_proj has 112 inputs",
        config={"intermediate_size": 112},
        compress=EQUAL_TO_BLOCK_TYPES,
        budget=FOUR_BITS,
    ),
    "gguf, width of the embeddings": export(
        "gguf",
        r"needs a hidden size that is a multiple of 32, but it is 48: set export\.embeddings=null",
        config={"hidden_size": 48},
        settings={"embeddings": "Q8_0"},
        compress=EQUAL_TO_BLOCK_TYPES,
        budget=FOUR_BITS,
    ),
    "gguf, size with the tokenizer": export(
        "gguf",
        "holds tokenizers with byte-pair encoding",
        tokenizer="words",
        compress=BLOCK_TYPES,
        budget=Budget(metric="size", target="1MB"),
    ),
    "nemotron_nas, family": drops("nemotron_nas", "this is qwen2", family="qwen2", config=WIDE),
    "nemotron_nas, sliding window": drops(
        "nemotron_nas", "with a sliding window", family="mistral", config={**WIDE, "sliding_window": 8}
    ),
    "nemotron_nas, width": drops("nemotron_nas", "a multiple of 256, but this one is 128 wide"),
    "nemotron_nas, first attention": drops("nemotron_nas", r"set space\.tie=engine", config=WIDE),
    "nemotron_nas, first attention with levels": export(
        "nemotron_nas", r"set space\.tie=engine", config=WIDE, compress=SYMMETRIC, space=SpaceSettings(**HALVES)
    ),
    # budgets and searches
    "nothing is left": Late(
        r"budget\.target is 1\.0 drop, which drops every block",
        changes={"compress": Drop(), "budget": Budget(metric="drop", target=1.0)},
    ),
    "nothing is left of one target": Late(
        "which drops every block", changes={"compress": Drop(), "budget": THIRD, "targets": (1 / 3, 0.9)}
    ),
    "dp, no levels": Late(
        r"use search\.errors=measured",
        changes={"compress": Drop(), "budget": THIRD, "search": Additive(errors="layer", tokens=32)},
    ),
    "owl, only with drops": Late(
        "owl drops nothing",
        changes={
            "compress": SparseGPT(base=0.2, num_levels=1),
            "budget": Budget(metric="sparsity", target=0.5),
            "space": SpaceSettings(**JOINT),
            "search": Owl(multiples=[3.0], spreads=[0.1], tokens=32),
        },
    ),
    "evolution, number of generations": Late(
        "search.generations=null is for a budget of drops only",
        changes={"search": replace(SEARCH, generations=None), "budget": Budget(metric="bits", target=2.7)},
    ),
    # tasks
    "tasks, twice in groups": tasks(r"'pairs' twice, in 'pairs' and in 'whole'", tasks=["pairs", "whole"]),
    "tasks, a package": tasks("which lm-eval cannot load .*not_installed_anywhere", tasks=["unimportable"]),
    "tasks, data": tasks(r"which lm-eval cannot load .*nothing\.jsonl", tasks=["without_data"]),
    "tasks, too few examples": tasks(r"lower eval\.num_fewshot", tasks=["pairs"], num_fewshot=50),
    "tasks, a misspelt setting": tasks("'temperatur'", tasks=["answers"], gen_kwargs={"temperatur": 1}),
    "tasks, too many tokens": tasks("may have 256 together", tasks=["answers"], gen_kwargs={"max_gen_toks": 999}),
    "tasks, no chat template": tasks("has no chat template", tasks=["pairs"], apply_chat_template=True),
    "tasks, no special tokens": replace(
        tasks("no token that begins or ends a text", tasks=["pairs"]), tokenizer="no special tokens"
    ),
    # the rest
    "data, no token of the beginning": Late(
        r"set data\.bos=false", tokenizer="no special tokens", changes={"data": replace(DATA, bos=True)}
    ),
    "data, more positions than the model has": Late(
        "the model has embeddings for 256 positions", family="opt", changes={"data": replace(DATA, window=512)}
    ),
    "W&B, not logged in": Late("no W&B API key", changes={"tracker": WandB(mode="online")}),
}

OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def save_model(late: Late, folder: Path) -> ModelSource:
    """Write configuration and tokenizer. There are no weights, so that nothing can read them."""
    has_code = late.family == "own"
    made = config("llama" if has_code else late.family)
    dtype = late.config.get("dtype", "float32")
    type(made).from_dict({**made.to_dict(), **late.config}).save_pretrained(folder)
    (TOKENIZERS[late.tokenizer]() if late.tokenizer else tokenizer()).save_pretrained(folder)
    if has_code:
        (folder / "own.py").write_text(OWN_CODE)
        auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, "model_type": "own", "auto_map": auto_map}))
    return ModelSource(name="late", path=str(folder), dtype=dtype, device="cpu", trust_remote_code=has_code)


def job_of(late: Late, folder: Path) -> Job:
    source = save_model(late, folder / "model")
    changes = dict(late.changes)
    if changes.get("budget") == "bits":
        low, high = changes["compress"].span
        changes["budget"] = Budget(metric="bits", target=(low + high) / 2)
    if "eval" in changes:
        write_tasks(folder / "tasks")
        changes["eval"] = replace(changes["eval"], include_path=str(folder / "tasks"))
    made = small_job(folder / "run", folder / "outputs", folder / "model", **changes)
    return replace(made, model=source)


def error_of(job: Job) -> str:
    with pytest.raises(ValueError) as raised:
        run_job(job)
    return str(raised.value)


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch, tmp_path):
    """No account of W&B, and an empty cache of data sets."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.mark.counts("late errors found early")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LATE_ERRORS)
def test_a_late_error_is_raised_before_anything_is_built_and_by_the_plan_alone(name, tmp_path):
    job = job_of(LATE_ERRORS[name], tmp_path)
    message = error_of(job)
    assert re.search(LATE_ERRORS[name].message, message), message
    assert not (tmp_path / "outputs" / "databases").exists() and not (tmp_path / "run").exists()
    assert error_of(replace(job, stages=("plan",))) == message


@pytest.mark.slow
def test_a_job_of_the_table_runs_without_its_mistake(tmp_path):
    """The jobs are refused for their mistake, not because they have no weights."""
    job = job_of(LATE_ERRORS["hf, half blocks"], tmp_path)
    AutoModelForCausalLM.from_config(config("llama")).save_pretrained(tmp_path / "model")
    right = replace(job, compress=Drop(granularity="block"), model=replace(job.model, max_perplexity=1e6))
    run_job(right)
    assert (tmp_path / "run" / "checkpoints" / "hf" / "config.json").is_file()
