"""A table of users' mistakes. Each leads to one message: what is wrong, what would be right, and which key to change.

A word `@name` in a command names a situation that the test sets up, see `SITUATIONS`.
"""

import json
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import wandb
from hydra.errors import HydraException
from transformers import AutoConfig, AutoModelForCausalLM

from evopress.config import ConfigError, build_job, suggest_keys
from evopress.pipeline import run_job
from evopress.runtime.files import lock_folder
from tests.configurations import composed
from tests.tiny_models import VOCABULARY, tokenizer

SMALL = [
    "data.calibration_tokens=512",
    "data.search_tokens=512",
    "data.validation_tokens=512",
    "data.test_tokens=512",
    "search.generations=1",
]

MISTAKES = [
    # names
    ("search.generatons=3", "did you mean search.generations?"),
    ("compres.bits=[2]", "did you mean compress.bits?"),
    ("modle=tiny", "did you mean model?"),
    ("+compress.bit=[2]", "compress.bit is not a setting; did you mean bits?"),
    ("+model.family.block=x", "model.family.block is not a setting; did you mean blocks?"),
    ("+model.family.norm=x", "model.family.layers is missing"),
    ("model=nosuch", "Could not find 'model/nosuch'"),
    ("budget=2bit", "Could not find 'budget/2bit'"),
    ("compress=awq", "Could not find 'compress/awq'"),
    ("search=annealing", "Could not find 'search/annealing'"),
    # types and ranges
    ("seed=abc", "seed is 'abc': it must be an integer"),
    ("effort=soon", "effort is 'soon': give token equivalents such as 60k, 300k or 3M, a time such as 30min or 2h, or"),
    ("effort=30m", "effort is '30m': give token equivalents"),
    ("finish=true", "finish=true is for a run that was interrupted: give its folder with resume=DIR"),
    ("finish=3", "finish is 3: it must be true or false"),
    ("seed=1.5", "seed is 1.5: it must be an integer"),
    ("data.window=abc", "data.window is 'abc': input should be a valid integer"),
    ("data.window=1", "data.window is 1: input should be greater than or equal to 2"),
    ("data.calibration_tokens=0", "data.calibration_tokens is 0: input should be greater than 0"),
    ("data.search_tokens=-5", "data.search_tokens is -5: input should be greater than 0"),
    ("data.bos=maybe", "data.bos is 'maybe': input should be a valid boolean"),
    ("budget.target=abc", "budget.target is 'abc': it must be a number, or a size such as 80MB"),
    ("budget.target=-1", "-1 is outside 0 to 32 for budget.metric=bits"),
    ("budget.target=nan", "nan is outside 0 to 32"),
    ("budget.metric=bit", "budget.metric is 'bit'"),
    ("budget=sparsity50 budget.target=50", "50 is outside 0 to 1 for budget.metric=sparsity"),
    ("budget=size budget.target=80XB", "'80XB' is not a size: write for example 80MB"),
    ("budget=size", "budget.target: Missing mandatory value"),
    ("compress.bits=[1]", "must be different widths from 2 to 8: change compress.bits"),
    ("compress.bits=[3,3]", "must be different widths from 2 to 8: change compress.bits"),
    ("compress.bits=[]", "must be different widths from 2 to 8: change compress.bits"),
    ("compress.bits=three", "compress.bits is 'three': input should be a valid tuple, such as compress.bits=[three]"),
    ("eval.prompts=Hello", "eval.prompts is 'Hello': input should be a valid list, such as eval.prompts=[Hello]"),
    ("compress.group_size=0", "compress.group_size is 0: input should be greater than 0"),
    ("compress.damp=-1", "compress.damp is -1: input should be greater than 0"),
    ("compress.propagate_bits=1", "compress.propagate_bits is 1: input should be greater than or equal to 2"),
    ("compress.scale_dtype=int8", "compress.scale_dtype is 'int8': input should be 'float16', 'bfloat16' or 'float32'"),
    ("compress=sparsegpt compress.base=2", "compress.base is 2: it must be a share from 0 to 1"),
    ("compress=sparsegpt compress.num_levels=0", "compress.num_levels is 0: input should be greater than 0"),
    (
        "compress=sparsegpt compress.num_levels=31",
        "compress.num_levels is 31: input should be less than",
    ),
    ("compress=drop compress.granularity=layer", "compress.granularity is 'layer'"),
    ("search=evolution search.offspring=0", "search.offspring is 0"),
    ("search=evolution search.offspring=8", "no stage may keep more candidates than the stage before"),
    ("search=evolution search.population=2", "the last of search.stages keeps 1 candidates but search.population is 2"),
    ("search=evolution search.stages=[]", "search.stages is []"),
    ("search=dp search.errors=both", "search.errors is 'both'"),
    ("search=random search.candidates=0", "search.candidates is 0"),
    ("search=owl search.multiples=[]", "search.multiples is []"),
    ("search=profile", "search.path: Missing mandatory value"),
    ("evaluator.fitness=mse", "evaluator.fitness is 'mse'"),
    ("evaluator.cache_gb=0", "evaluator.cache_gb is 0"),
    ("eval.limit=0", "eval.limit is 0"),
    ("eval.num_fewshot=-1", "eval.num_fewshot is -1"),
    ("space.trade=all", "space.trade is 'all'"),
    ("space.tie=vllm", "space.tie is 'vllm'"),
    ("export.formats=[onnx]", "export.formats contains 'onnx', which is not a format: use some of hf"),
    ("export.formats=[hf] export.push_to_hub=small", "export.push_to_hub is 'small': give the user or organisation"),
    ("export.push_to_hub=lab/small", "export.push_to_hub uploads what export.formats names, but that is empty"),
    ("model.device=tpu9", "model.device is 'tpu9': use auto, cpu, cuda"),
    ("model.device=mps", "has never been tested on mps: use auto, cpu, cuda"),
    ("model.name=a/b", "model.name is 'a/b': it names a folder"),
    ("model.dtype=int4", "model.dtype is 'int4'"),
    ("model.max_perplexity=0", "model.max_perplexity is 0"),
    ("tracking=wandb tracking.mode=sometimes", "tracking.mode is 'sometimes'"),
    (
        "stages=[serach]",
        "stages contains 'serach', which is not a stage: use some of plan, database, search, tune, evaluate",
    ),
    # settings that do not fit together
    ("budget=sparsity50", "budget.metric is sparsity but this compressor counts bits: use budget=3bit or budget=size"),
    ("compress=sparsegpt budget=3bit", "use budget=sparsity50"),
    ("compress=drop budget=3bit", "use budget=drop25"),
    ("budget.target=1", "budget.target is 1 bits but the smallest level is 2: raise budget.target to at least 2"),
    ("budget=size budget.target=100KB", "the most compressed profile has"),
    (
        "budget=memory budget.target=1MB budget.context=512 budget.reserve=1MB",
        "most compressed profile has 2.7 MB (weights 687.4 KB, cache 1.0 MB, reserve 1.0 MB): raise budget.target, "
        "lower budget.context",
    ),
    ("budget=memory budget.target=1GB budget.kv=int3", "budget.kv is 'int3': it must be a type of the cache: f16, bf"),
    ("budget=memory budget.target=1GB budget.reserve=none", "budget.reserve is 'none': 'none' is not a size"),
    ("budget=memory budget.target=1GB budget.context=0", "budget.context is 0: input should be greater than 0"),
    ("budget.metric=memory budget.target=1GB", "use budget=memory budget.target=24GB"),
    ("budget=memory budget.target=1GB compress=sparsegpt compress.base=0.5", "use budget=sparsity50"),
    (
        "budget=memory budget.target=1GB budget.kv=fp8 compress=gguf export.formats=[gguf]",
        "set budget.kv to one of f16, bf16, q8_0, q4_0",
    ),
    (
        "compress=drop budget=memory budget.target=7MB budget.reserve=0 search=brute_force",
        "search=brute_force counts dropped units, but budget.metric is memory: use a budget such as budget=drop25",
    ),
    (
        "compress=drop budget=memory budget.target=7MB budget.reserve=0 search=cosine_window",
        "this search drops a given number of blocks, but budget.metric is memory: use a budget such as budget=drop25",
    ),
    ("budget=latency budget.target=20ms budget.table=/nowhere.json", "run with stages=[plan] to measure it"),
    ("budget=latency budget.target=fast budget.table=x.json", "'fast' is not a time: write for example 20ms"),
    (
        "budget=memory budget.target=9MB budget.also={{target:1s,table:x.json}} targets=[8MB,9MB]",
        "budget.also works only with a single target: remove targets",
    ),
    ("budget=memory budget.target=1KB export.formats=[hf]", "engines take more memory for it than budget.target"),
    ("budget=memory budget.target=9MB budget.also={{target:soon,table:x.json}}", "budget.also.target is 'soon'"),
    (
        "budget=memory budget.target=1KB budget.context=99999",
        "budget.context is 99999, but the model was made for contexts of up to",
    ),
    ("budget.metric=latency", "use budget=latency budget.target=20ms budget.table=FILE"),
    ("compress=drop search=owl", "search=owl assigns sparsities: use it with budget=sparsity50"),
    ("search=shortgpt", "this search scores drops: use it with compress=drop"),
    ("compress=drop search=dp", "use search.errors=measured"),
    ("compress=drop search=brute_force search.max_profiles=3", "more than search.max_profiles=3: raise it"),
    ("compress=drop compress.keep_mlp=[99]", "compress.keep_mlp names block 99, but blocks are 0 to 7"),
    (
        "compress.group_size=10",
        "compress.group_size is 10, but neither it nor a smaller size of 128, 64, 32 and 16 divides",
    ),
    (
        "compress=float budget.target=4",
        "the smallest level is 4.5: raise budget.target to at least 4.5 or add a smaller level to compress.levels",
    ),
    ("compress=float compress.levels=[fp9]", "must be different formats out of bf16, fp8"),
    ("compress=float compress.rounding=random", "compress.rounding is 'random'"),
    ("compress=drop export.formats=[gguf]", "which compress=drop does not make: use compress=gguf"),
    ("space.drops=half", "space.drops is 'half'"),
    ("space.drops=subblock", "set space.trade=any, or use space=joint"),
    ("space=joint compress=drop budget=drop25", "set space.drops=none"),
    ("space=joint budget=size budget.target=1KB", "the most compressed profile has"),
    ("space=joint search=swaps", "use it with compress=drop"),
    # files and texts
    ("data.source=/nowhere.txt", "data.source is '/nowhere.txt', which is neither pydoc, wikitext2"),
    ("data.test_source=/nowhere.txt", "data.test_source is '/nowhere.txt'"),
    ("data=text", "data.source: Missing mandatory value"),
    ("data=text data.source={empty}", "empty.txt has about 0 tokens, too few for"),
    ("data=text data.source={binary}", "is not UTF-8"),
    ("data=text data.source={table}", "has no column 'text' (its columns are words): set data.text_column"),
    ("data=text data.source={folder}", "a folder without .txt, .jsonl, .parquet files"),
    ("data=text data.source={picture}", "text files end in .txt, .jsonl, .parquet"),
    ("data.calibration_tokens=100000000", "pydoc has about"),
    ("model=hf model.name=x model.path={unknown_type}", "has model type `no_such_type`"),
    (
        "model=hf model.name=x model.path=/nowhere",
        "model.path is '/nowhere', which is neither a folder nor a .gguf file",
    ),
    ("model=hf model.name=x model.path={folder}", "folder' cannot be loaded as a causal language model"),
    ("model=hf model.name=x", "model.path: Missing mandatory value"),
    ("model.package=no_such_package", "model.package is 'no_such_package', which is not installed"),
    ("model.path=assets/none", "model.path is 'assets/none', which does not exist in the package evopress"),
    ("model.gguf_file=x.gguf", "model.gguf_file is 'x.gguf', which does not exist in"),
    ("model.device=cuda", "model.device is 'cuda' but there is no usable GPU: set model.device=cpu"),
    ("model.max_perplexity=2", "which is not below 2"),
    ("search=profile search.path=/nowhere.txt", "search.path '/nowhere.txt' is not a file"),
    ("search=profile search.path={notes}", "is not `layer name: level`"),
    ("search=profile search.path={broken}", "this is not a profile"),
    ("eval.include_path=/nowhere", "eval.include_path is '/nowhere', which is not a folder"),
    ("eval.datasets=[/nowhere.txt]", "eval.datasets is '/nowhere.txt', which is neither pydoc, wikitext2"),
    ("eval.datasets=[pydoc]", "eval.datasets names 'pydoc', which is already a test text of this run"),
    ("eval.datasets=[fineweb_edu] eval.test_tokens=null", "set eval.test_tokens to a number of tokens"),
    ("data=fineweb_edu data.test_tokens=null", "set data.test_tokens to a number of tokens"),
    ("data.text_column=body", "data.text_column is 'body', but it is only for .jsonl and .parquet files"),
    ("data.validation_source=/nowhere.txt", "data.validation_source is '/nowhere.txt'"),
    ("data=text data.source={chat}", "has no text in 'text' (its keys are messages): set data.text_column"),
    (
        "data=text data.source={chat} data.text_column=messages",
        "or set data.text_column to a column that contains text",
    ),
    ("data=text data.source={copies}", "more/a.txt has the same text as"),
    ("data=text data.source={torn}", "torn.parquet is not a parquet file, or is damaged"),
    ("data=text data.source={surrogate}", "surrogate.jsonl is not Unicode text"),
    # models
    ("model=hf model.name=x model.path={gpt2}", "none of the known families"),
    ("model=hf model.name=x model.path={no_blocks}", "Set model.family to the paths of its parts"),
    ("model=hf model.name=x model.path={code}", "its own Python code, which is not run"),
    ("model=hf model.name=x model.path={code}", "read the code and set model.trust_remote_code=true"),
    ("model=hf model.name=x model.path={pickled}", "cannot be loaded as a causal language model with safetensors"),
    # the machine
    ("outputs=/sys/evopress", "/sys/evopress"),
    ("outputs={notes}", "Not a directory"),
    ("@offline data=wikitext2", "data.source: Salesforce/wikitext cannot be read from the hub"),
    ("@offline data=wikitext2", "check the network, or use data=pydoc, or data=text data.source=FILE"),
    ("@offline eval.datasets=[c4]", "eval.datasets: allenai/c4 cannot be read from the hub"),
    ("@offline model=mistral7b", "give a hub id that can be reached from here, a folder, or a .gguf file"),
    ("@busy", "another process is using"),
]
SLOW_MISTAKES = [
    ("eval.tasks=[pairz] eval.include_path={tasks}", "eval.tasks names 'pairz'"),  # reads thousands of tasks
    ("@outage tracking=wandb tracking.mode=offline", "W&B failed (the service is down); nothing more is sent"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bad files, by their names in the table."""
    root = tmp_path_factory.mktemp("files")
    (root / "empty.txt").write_text("")
    (root / "binary.txt").write_bytes(b"\xff\xfe\x00words\x80")
    pyarrow.parquet.write_table(pyarrow.table({"words": ["a", "b"]}), root / "table.parquet")
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / "notes.txt").write_text("to do: nothing at all\n")
    (root / "broken.json").write_text('{"units": [')
    (root / "torn.parquet").write_bytes((root / "table.parquet").read_bytes()[:100])
    (root / "surrogate.jsonl").write_text('{"text": "\\ud800"}')
    for name, family, changes in (
        ("gpt2", "gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": VOCABULARY}),
        ("no_blocks", "llama", {"num_hidden_layers": 0, "hidden_size": 32, "intermediate_size": 32}),
        ("one_block", "llama", {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}),
    ):
        config = AutoConfig.for_model(family, **{"vocab_size": VOCABULARY, "num_attention_heads": 2, **changes})
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        tokenizer().save_pretrained(root / name)
    (root / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello"}]}')
    (root / "copies" / "more").mkdir(parents=True)
    for name in ("a.txt", "more/a.txt"):
        (root / "copies" / name).write_text(" ".join(map(str, range(2000))))
    for name in ("folder", "unknown_type", "tasks", "code", "pickled"):
        (root / name).mkdir()
    (root / "unknown_type" / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))
    (root / "code" / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    shutil.copytree(root / "one_block", root / "pickled", dirs_exist_ok=True)
    (root / "pickled" / "model.safetensors").rename(root / "pickled" / "pytorch_model.bin")
    (root / "tasks" / "pairs.yaml").write_text("task: pairs\ndataset_path: json\noutput_type: multiple_choice\n")
    return {path.stem: str(path) for path in root.iterdir()}


def message_of(overrides: list[str], folder: Path) -> str:
    """The message that the user sees, whichever stage raises it."""
    try:
        cfg = composed(*small_for(overrides), *overrides)
        if not any(override.startswith("outputs=") for override in overrides):
            cfg.outputs = str(folder / "outputs")
        run_job(build_job(cfg, folder / "run"))
    except HydraException as error:
        return "\n".join([str(error), *suggest_keys(overrides)])
    except (ConfigError, ValueError, OSError) as error:
        return str(error)
    return "no message"


@contextmanager
def offline(monkeypatch, folder):
    """A machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    yield


@contextmanager
def outage(monkeypatch, folder):
    """W&B accepts two metrics, and then fails."""
    remaining = iter(range(2))
    real = wandb.Run.log

    def failing(self, *args, **kwargs):
        if next(remaining, None) is None:
            raise wandb.errors.CommError("the service is down")
        real(self, *args, **kwargs)

    monkeypatch.setattr("wandb.Run.log", failing)
    yield


@contextmanager
def busy(monkeypatch, folder):
    """The run directory is used by another process."""
    (folder / "run").mkdir()
    with lock_folder(folder / "run"):
        yield


SITUATIONS = {"@offline": offline, "@outage": outage, "@busy": busy}


def small_for(overrides: list[str]) -> list[str]:
    named = {override.partition("=")[0] for override in overrides}
    takes_generations = not any(override.startswith("search=") for override in overrides)
    return [
        setting
        for setting in SMALL
        if setting.partition("=")[0] not in named and (takes_generations or not setting.startswith("search."))
    ]


@pytest.mark.counts("bad inputs")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("command", "expected"),
    [pytest.param(*mistake, id=mistake[0]) for mistake in MISTAKES]
    + [pytest.param(*mistake, id=mistake[0], marks=pytest.mark.slow) for mistake in SLOW_MISTAKES],
)
def test_a_mistake_leads_to_one_message_with_its_key(command, expected, files, tmp_path, monkeypatch, caplog):
    words = [part.format(**files) if "{" in part else part for part in command.split(" ")]
    with ExitStack() as stack:
        for word in SITUATIONS.keys() & set(words):
            stack.enter_context(SITUATIONS[word](monkeypatch, tmp_path))
        message = message_of([word for word in words if not word.startswith("@")], tmp_path)
    assert expected in message + caplog.text
    if "@outage" in words:
        assert message == "no message" and caplog.text.count("W&B failed") == 1
