"""Malicious files are refused with an error that names them, and no code in them runs."""

import json
import shutil
import struct
from pathlib import Path
from random import Random

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file

from evopress.arguments import expand_resume
from evopress.config import ConfigError, build_job, check_resumed
from evopress.data.sources import text_source
from evopress.database.store import BlockLevels, Database
from evopress.models.file_checks import INDEX
from evopress.models.loading import load_model
from evopress.models.location import locate
from evopress.models.source import ModelSource
from evopress.runtime.checksums import folder_is_intact, verify_checksum, with_checksum, write_checksums
from evopress.runtime.json_files import parse_json
from evopress.search.log import SearchLog
from evopress.space.profile_files import from_json
from evopress.weights.base import from_tensors
from evopress.weights.dense import Kept
from tests.configurations import composed
from tests.spaces import bit_space
from tests.tiny_models import random_model, save_tiny, tokenizer

pytestmark = pytest.mark.counts("hostile files")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny("llama", folder)
    return folder


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """A model next to a module that creates the file `canary` when it is imported."""
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\nclass Evil: pass\n")
    return folder


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def loaded(folder: Path, **changes):
    source = ModelSource(name="evil", path=str(folder), dtype="float32", device="cpu", **changes)
    return load_model(source, folder.parent / "cache")


CODE = {
    "config.json": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
    "tokenizer_config.json": {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
}


@pytest.mark.parametrize("name", CODE)
def test_a_model_that_needs_code_is_refused_with_the_key_and_without_running_it(name, model, tmp_path):
    edit(model / name, **CODE[name])
    with pytest.raises(ValueError, match=r"its own Python code, which is not run.*model\.trust_remote_code=true"):
        loaded(model)
    assert not (tmp_path / "canary").exists()


def test_code_next_to_a_model_that_does_not_need_it_is_not_run(model, tmp_path):
    edit(model / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    assert loaded(model).num_blocks == 3
    assert not (tmp_path / "canary").exists()


def test_a_model_configuration_with_an_attention_kernel_from_the_hub_is_refused(model):
    edit(model / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(ValueError, match=r"asks for somebody/kernel, .* code from the hub: set model\.attention"):
        loaded(model)
    assert loaded(model, attention="eager").num_blocks == 3


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter_model.bin"])
def test_a_pickle_is_never_opened_whatever_its_name(name, model, tmp_path):
    """Loading the pickle would create the file `canary`."""
    command = f"c__builtin__\nexec\n(Vopen({str(tmp_path / 'canary')!r}, 'w')\ntR."
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(command.encode())
    with pytest.raises(ValueError, match=r"model\.path.*cannot be loaded.*safetensors"):
        loaded(model)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("where", ["../outside.safetensors", "absolute"])
def test_an_index_must_not_point_outside_the_folder(where, model, tmp_path):
    shutil.move(model / "model.safetensors", tmp_path / "outside.safetensors")
    name = str(tmp_path / "outside.safetensors") if where == "absolute" else where
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ValueError, match=r"outside\.safetensors, which is not a safetensors file in its folder"):
        loaded(model)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": 10**9}, "mismatched"),
        ({"vocab_size": 10**9}, "mismatched"),
        ({"hidden_size": "64"}, "Validation error for field 'hidden_size'"),
        ({"num_hidden_layers": 0}, "none of the known families"),
        ({"num_attention_heads": 0}, "modulo by zero"),
        ({"num_hidden_layers": -1}, "none of the known families"),
    ],
    ids=str,
)
def test_huge_or_invalid_shapes_are_refused(changes, reason, model):
    edit(model / "config.json", **changes)
    with pytest.raises(ValueError, match=rf"(?s)(model\.path|model's type) .*{reason}"):
        loaded(model)


@pytest.mark.parametrize("number", range(12))
def test_a_gguf_file_with_any_field_made_huge_is_refused(number, tmp_path):
    """Every count, length and offset of the header in turn points beyond the file."""
    string = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<I", 8) + struct.pack("<Q", 5) + b"llama"
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + string
    tensor = struct.pack("<Q", 1) + b"w" + struct.pack("<IQQIQ", 2, 32, 32, 0, 0)
    content = bytearray(header + tensor + bytes(4096))
    position = 4 + 10 * number
    content[position : position + 8] = struct.pack("<Q", 2**62)
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.path.*cannot be loaded"):
        loaded(tmp_path / "model.gguf")


LINE = "a word and another one and so on "
ENCODINGS = {
    "utf16.txt": LINE.encode("utf-16"),
    "latin.txt": b"caf\xe9 " * 50,
    "overlong.txt": b"\xc0\xaf" * 50,
    "surrogate.txt": b"\xed\xa0\x80" * 50,
    "cut.txt": "é".encode()[:1],
    "surrogate.jsonl": b'{"text": "\\ud800"}\n',
    "twice.jsonl": b'{"text": "\xff"}\n',
}


def texts(path: Path) -> list[str]:
    """The documents in a file, read to their ends."""
    return ["".join(document.pieces(tokenizer())) for document in text_source(str(path)).documents("text", "train")]


@pytest.mark.parametrize("name", ENCODINGS)
def test_text_with_an_invalid_encoding_is_refused_with_the_file_name(name, tmp_path):
    (tmp_path / name).write_bytes(ENCODINGS[name])
    with pytest.raises(ValueError, match=rf"{name} is not (UTF-8|Unicode) text"):
        texts(tmp_path / name)


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    for name, content in (("a.txt", b"word"), ("b.jsonl", b'{"text": "word"}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
        assert texts(tmp_path / name) == ["word"]


@pytest.mark.slow
def test_parquet_with_invalid_text_is_refused_and_a_flipped_bit_never_crashes_the_reader(tmp_path):
    offsets = pyarrow.array([0, 2, 4], pyarrow.int32()).buffers()[1]
    broken = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"\xff\xfeab"))
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), path)
    with pytest.raises(ValueError, match=r"a\.parquet is not a parquet file, or is damaged"):
        texts(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"{LINE}{n}" for n in range(300)]}), path)
    original, rng = path.read_bytes(), Random(0)
    refused = 0
    for _ in range(60):
        content = bytearray(original)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            texts(path)
        except ValueError as error:
            assert "a.parquet" in str(error)
            refused += 1
    assert refused > 10


@pytest.fixture
def database(tmp_path) -> Database:
    made = Database.open(tmp_path, "evil", {"model": "x"})
    made.put(0, BlockLevels({"layer": [Kept(torch.ones(2, 2))]}, {"layer": [0.0]}))
    return made


def reopened(database: Database) -> Database:
    return Database.open(database.folder.parent, "evil", {"model": "x"})


@pytest.mark.parametrize("key", ["fingerprint", "blocks", "format", "sha256", "identity"])
def test_a_manifest_that_lacks_a_key_is_refused(key, database):
    manifest = json.loads(database.manifest_path.read_text())
    del manifest[key]
    database.manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read.*delete"):
        reopened(database)


def test_a_duplicate_key_is_refused_in_manifest_log_and_profile(database, tmp_path):
    text = database.manifest_path.read_text().rstrip()
    database.manifest_path.write_text(text[:-1] + ', "format": 1}')
    with pytest.raises(ValueError, match=r"'format' is given twice.*delete"):
        reopened(database)
    log = SearchLog(tmp_path / "search.jsonl", {"seed": 1})
    log.load()
    log.path.write_text(log.path.read_text().replace('"seed": 1', '"seed": 1, "seed": 1'))
    with pytest.raises(ValueError, match="'seed' is given twice"):
        log.load()
    with pytest.raises(ValueError, match="'level' is given twice"):
        from_json(bit_space([1]), '{"units": [{"unit": "layer0", "level": 0, "level": 1}]}')


@pytest.mark.parametrize("name", ["/layer0", "../layer0", "layer0\x00", "layer0/../layer0"])
def test_a_profile_with_unknown_units_is_refused(name):
    with pytest.raises(ValueError, match="another model"):
        from_json(bit_space([1]), json.dumps({"units": [{"unit": name, "level": 0}]}))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"kind": "quantized", "bits": 4, "cols": 10**15}, "cols must be an integer from 1 to"),
        ({"kind": "sparse", "cols": 2**40}, "cols must be an integer from 1 to"),
        ({"kind": "dropped", "rows": 2**30, "cols": 2**30}, "larger than any layer"),
        ({"kind": "dropped", "rows": -1, "cols": 4}, "rows must be an integer from 1 to"),
        ({"kind": "ggml", "type": "os.system"}, "unknown ggml type"),
        ({"kind": "os.system"}, "unknown kind of weight"),
        ({}, "unknown kind of weight"),
    ],
    ids=str,
)
def test_packed_weights_of_huge_or_unknown_form_are_refused(spec, reason):
    tensors = {
        "codes": torch.zeros(2, 2, dtype=torch.int32),
        "scales": torch.ones(2, 1),
        "bitmask": torch.zeros(2, 1, dtype=torch.uint8),
        "values": torch.zeros(0),
        "data": torch.zeros(2, 18, dtype=torch.uint8),
    }
    with pytest.raises(ValueError, match=reason):
        from_tensors(spec, tensors)


def test_a_safetensors_header_with_a_wrong_length_is_refused(tmp_path, database):
    path = database.folder / "block-000.safetensors"
    content = path.read_bytes()
    for length in (2**63, len(content), 0):
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        with pytest.raises(Exception, match=r"(?i)header|invalid"), safe_open(path, "pt"):
            pass
        assert reopened(database).blocks == {}


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run directory as Hydra creates it."""
    cfg = composed()
    cfg.outputs = str(tmp_path)
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, tmp_path / "run" / ".hydra" / "config.yaml")
    return tmp_path / "run"


def rewrite(run_folder: Path, change) -> None:
    path = run_folder / ".hydra" / "config.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def test_a_saved_run_is_resumed(run_folder):
    assert f'hydra.run.dir="{run_folder}"' in expand_resume([f"resume={run_folder}"])
    assert build_job(OmegaConf.load(run_folder / ".hydra" / "config.yaml"), run_folder).seed == 0


@pytest.mark.parametrize("key", ["hydra", "defaults"])
def test_a_saved_run_with_settings_of_hydra_is_not_resumed(key, run_folder):
    rewrite(run_folder, lambda content: content.update({key: {"callbacks": {"x": {"_target_": "os.system"}}}}))
    with pytest.raises(SystemExit, match=f"the key {key}, which no run writes: it could run code"):
        expand_resume([f"resume={run_folder}"])


def test_a_saved_run_with_a_package_line_is_not_resumed(run_folder):
    path = run_folder / ".hydra" / "config.yaml"
    path.write_text("# @package hydra\n" + path.read_text())
    with pytest.raises(SystemExit, match="a @package line, which no run writes"):
        expand_resume([f"resume={run_folder}"])


def test_a_saved_run_with_configuration_groups_is_not_resumed(run_folder):
    (run_folder / ".hydra" / "hydra").mkdir()
    with pytest.raises(SystemExit, match="the folder hydra, which no run writes"):
        expand_resume([f"resume={run_folder}"])


@pytest.mark.parametrize("content", ["", "[1]", "a: [", "!!python/object/apply:os.system [true]"])
def test_a_damaged_configuration_is_not_resumed(content, run_folder):
    (run_folder / ".hydra" / "config.yaml").write_text(content)
    with pytest.raises(SystemExit, match=r"config\.yaml is damaged"):
        expand_resume([f"resume={run_folder}"])


@pytest.mark.parametrize("group", ["compress", "search", "tracking", "model"])
@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "evopress.space.budget.Budget", "nowhere.Class"])
def test_a_saved_run_cannot_choose_what_is_called(group, target, run_folder):
    rewrite(run_folder, lambda content: content[group].update(_target_=target))
    with pytest.raises(ConfigError, match=rf"{group}\._target_ is '{target}', which is no"):
        build_job(OmegaConf.load(run_folder / ".hydra" / "config.yaml"), run_folder)


@pytest.fixture
def module_here(tmp_path, monkeypatch) -> Path:
    """The working directory, with modules that create `canary` when they are imported."""
    code = f"open({str(tmp_path / 'canary')!r}, 'w').close()\nclass Evil: pass\n"
    (tmp_path / "evil_package").mkdir()
    for name in ("evil_module.py", "evil_package/__init__.py"):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def resumed(run_folder: Path, overrides: list[str], config_dirs: list[str]) -> None:
    """What a resumed run does before it loads anything."""
    cfg = OmegaConf.merge(
        OmegaConf.load(run_folder / ".hydra" / "config.yaml"), OmegaConf.from_dotlist(overrides or ["seed=0"])
    )
    check_resumed(cfg, overrides=overrides, config_dirs=config_dirs)
    build_job(cfg, run_folder)


@pytest.mark.parametrize("group", ["compress", "search", "tracking", "model", "export"])
@pytest.mark.parametrize("target", ["evil_module.Evil", "evil_package.Evil", "${oc.env:EVIL}", "${other}"])
def test_a_saved_run_imports_no_module_from_outside(group, target, run_folder, module_here, monkeypatch):
    monkeypatch.setenv("EVIL", "evil_module.Evil")
    rewrite(run_folder, lambda content: content.update(other="evil_module.Evil"))
    rewrite(run_folder, lambda content: content[group].update(_target_=target))
    with pytest.raises(ConfigError, match=rf"{group}\._target_ of the saved run is .*add --config-dir"):
        resumed(run_folder, [], [])
    assert not (module_here / "canary").exists()


@pytest.mark.parametrize("call", ["${other}", "${oc.decode:'{_target_: evil_module.Evil}'}"])
def test_a_saved_run_cannot_fetch_a_group_from_elsewhere(call, run_folder, module_here):
    rewrite(run_folder, lambda content: content.update(other={"_target_": "evil_module.Evil"}, search=call))
    with pytest.raises(ConfigError, match=r"search\._target_ of the saved run"):
        resumed(run_folder, [], [])
    assert not (module_here / "canary").exists()


@pytest.mark.parametrize("package", ["evil_package", "evil_package.part", "evil_module", "evil_module.part"])
def test_a_saved_run_does_not_import_the_package_that_it_names(package, module_here):
    with pytest.raises(ValueError, match=r"model\.pa(ckage|th) is"):
        locate(ModelSource(name="x", package=package, path="weights"))
    assert not (module_here / "canary").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("model.trust_remote_code", True), ("model.trust_remote_code", "yes"), ("eval.include_path", ".")],
)
def test_a_saved_setting_that_runs_code_must_be_on_the_command_line_as_well(key, value, run_folder):
    group, name = key.split(".")
    rewrite(run_folder, lambda content: content[group].update({name: value}))
    with pytest.raises(ConfigError, match=rf"{key} of the saved run is .*add {key}={value} to this command"):
        resumed(run_folder, [], [])
    resumed(run_folder, [f"{key}={value}"], [])


def test_a_class_that_the_config_dir_of_the_command_line_names_is_used_again(run_folder, module_here):
    (module_here / "conf" / "search").mkdir(parents=True)
    (module_here / "conf" / "search" / "evil.yaml").write_text("_target_: evil_module.Evil\n")
    rewrite(run_folder, lambda content: content["search"].update(_target_="evil_module.Evil"))
    with pytest.raises(ConfigError, match="is not a subclass of"):
        resumed(run_folder, [], [str(module_here / "conf")])


@pytest.mark.parametrize("key", ["_target_", "_partial_", "_args_"])
def test_a_saved_run_cannot_hide_a_call_inside_a_setting(key, run_folder, tmp_path):
    call = {key: "builtins.open", "_args_": [str(tmp_path / "canary"), "w"]}
    rewrite(run_folder, lambda content: content["search"].update(stages=[call]))
    with pytest.raises(ConfigError, match="only one _target_ is allowed"):
        build_job(OmegaConf.load(run_folder / ".hydra" / "config.yaml"), run_folder)
    assert not (tmp_path / "canary").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["blocks", "file", "0", "bytes", "sha256", "format", "fingerprint", "header"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(JSON, st.booleans())
def test_any_json_as_a_manifest_is_refused_with_a_remedy(tmp_path_factory, value, is_sealed):
    database = Database.open(tmp_path_factory.mktemp("fuzz"), "x", {"model": "x"})
    database.folder.mkdir()
    content = with_checksum(value) if is_sealed and isinstance(value, dict) else value
    database.manifest_path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="delete"):
        database.refresh()


@settings(deadline=None, max_examples=60)
@given(st.lists(JSON, min_size=1, max_size=3), st.booleans())
def test_any_json_lines_as_a_search_log_are_refused(tmp_path_factory, values, is_sealed):
    path = tmp_path_factory.mktemp("fuzz") / "search.jsonl"
    lines = [with_checksum(value) if is_sealed and isinstance(value, dict) else value for value in values]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"search\.jsonl"):
        SearchLog(path, {"seed": 1}).load()


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_parsing_any_text_raises_nothing_but_value_errors(text):
    try:
        verify_checksum(parse_json(text))
    except ValueError:
        return
    raise AssertionError("no text that short has a checksum")


def test_a_cached_folder_is_intact_until_any_file_changes(tmp_path):
    folder = tmp_path / "model"
    random_model("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    assert not folder_is_intact(folder)
    write_checksums(folder)
    assert folder_is_intact(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for path, content in before.items():
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert not folder_is_intact(folder)
        path.write_bytes(content)
    (folder / "extra.py").write_text("")
    assert not folder_is_intact(folder)
    (folder / "extra.py").unlink()
    save_file({"other": torch.zeros(1)}, folder / "more.safetensors")
    assert not folder_is_intact(folder)
    assert not folder_is_intact(tmp_path / "nowhere")
