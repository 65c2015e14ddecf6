"""`evopress.inspection` recognises what evopress writes, and detects damage."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evopress.database.store import BlockLevels, Database
from evopress.inspection import UnknownFileError, inspect_path
from evopress.inspection.__main__ import main
from evopress.inspection.checkpoints import INDEX
from evopress.runtime.checksums import with_checksum
from evopress.space.profile_files import to_json, to_text
from evopress.space.units import OUTSIDE
from evopress.weights.integer import QuantizedWeight
from tests.run_folders import make_run
from tests.spaces import bit_space

IDENTITY = {"model": "abc", "dtype": "torch.float32", "compressor": {"name": "rtn", "bits": [4, 2]}}


def quantized(bits: int) -> QuantizedWeight:
    codes = torch.arange(64, dtype=torch.uint8).reshape(4, 16) % 2**bits
    return QuantizedWeight.from_codes(codes, torch.ones(4, 2), zeros=torch.zeros(4, 2, dtype=torch.uint8), bits=bits)


@pytest.fixture
def database(tmp_path) -> Path:
    made = Database.open(tmp_path / "databases", "rtn", IDENTITY, expected=range(3))
    for block in range(3):
        levels = {f"model.layers.{block}.{kind}": [quantized(4), quantized(2)] for kind in ("q", "o")}
        made.put(block, BlockLevels(levels, {layer: [0.1, 0.2] for layer in levels}, ("a note",)))
    return made.folder


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """Two files with an index; one layer is packed in three bits."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    packed = {
        "model.layers.0.q.weight_packed": torch.zeros(4, 2, dtype=torch.int32),
        "model.layers.0.q.weight_scale": torch.ones(4, 2, dtype=torch.bfloat16),
        "model.layers.0.q.weight_shape": torch.tensor([4, 16]),
    }
    plain = {"model.embed_tokens.weight": torch.zeros(10, 4, dtype=torch.bfloat16)}
    files = {"a.safetensors": packed, "b.safetensors": plain}
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    group = {"targets": ["model.layers.0.q"], "weights": {"num_bits": 3}}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def flip_a_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def rewrite(database: Path, change: dict) -> None:
    """Change keys of a manifest and update its checksum."""
    manifest = json.loads((database / "manifest.json").read_text()) | change
    (database / "manifest.json").write_text(json.dumps(with_checksum(manifest)))


def single_finding(path: Path):
    (finding,) = inspect_path(path)
    return finding


def test_an_undamaged_database_is_intact(database, capsys):
    finding = single_finding(database)
    assert (finding.kind, finding.state) == ("database", "intact")
    assert finding.facts["compressor"] == "rtn bits=[4, 2]"
    assert finding.facts["layers"] == "6 at 2 levels"
    assert finding.facts["blocks"].startswith("3 of 3, ")
    assert "a note" in finding.facts["notes"]
    assert main([str(database / "manifest.json")]) == 0
    assert "intact" in capsys.readouterr().out


@pytest.mark.parametrize("place", [3, 200, -1])
def test_a_flipped_byte_in_a_block_is_a_defect(place, database, capsys):
    flip_a_byte(database / "block-001.safetensors", place)
    (defect,) = single_finding(database).defects
    assert defect.startswith("block 1: block-001.safetensors does not have the SHA-256")
    assert main([str(database)]) == 1
    assert "DAMAGED" in capsys.readouterr().out


def test_a_truncated_block_and_a_missing_block_are_defects(database):
    (database / "block-000.safetensors").write_bytes((database / "block-000.safetensors").read_bytes()[:-1])
    (database / "block-002.safetensors").unlink()
    first, second = single_finding(database).defects
    assert "block 0" in first and "bytes" in first
    assert "block 2" in second and "missing" in second


def test_a_database_with_blocks_to_build_is_unfinished(database):
    rewrite(database, {"expected": [0, 1, 2, 3, OUTSIDE]})
    assert "block 3, embeddings and head missing" in single_finding(database).unfinished
    assert single_finding(database).facts["blocks"].startswith("3 of 4, ")
    manifest = json.loads((database / "manifest.json").read_text())
    del manifest["blocks"]["1"]
    rewrite(database, manifest | {"expected": [0, 1, 2]})
    assert (single_finding(database).state, single_finding(database).defects) == ("unfinished", [])
    assert "block 1 missing" in single_finding(database).unfinished


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identity": {**IDENTITY, "model": "abd"}}, "does not match its identity"),
        ({"format": 99}, "not of format"),
        ({"blocks": {"0": 3}}, "cannot be read"),
        ({"blocks": {"0": {"file": "../block-000.safetensors"}}}, "cannot be read"),
    ],
)
def test_an_inconsistent_manifest_is_a_defect(change, words, database):
    rewrite(database, change)
    assert any(words in defect for defect in single_finding(database).defects)


def test_a_folder_with_the_name_of_another_database_is_a_defect(database):
    renamed = database.rename(database.with_name("rtn-000000000000"))
    assert any("name of another database" in defect for defect in single_finding(renamed).defects)


def test_a_truncated_manifest_is_a_defect(database):
    (database / "manifest.json").write_bytes((database / "manifest.json").read_bytes()[:50])
    assert "manifest.json cannot be read" in single_finding(database).defects[0]


@pytest.mark.parametrize("name", ["manifest.json", "results.json", "profile.json", "search.jsonl", "seconds.json"])
def test_the_checksum_detects_a_changed_digit(name, database, tmp_path):
    folder = database if name == "manifest.json" else make_run(tmp_path / "run")
    path = folder / name
    if name != "manifest.json":  # with checksums, as evopress writes them
        lines = [json.dumps(with_checksum(json.loads(line))) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{line}\n" for line in lines))
    assert single_finding(folder).defects == []
    content = path.read_bytes()
    places = [place for place, byte in enumerate(content) if byte in b"2345"]
    flip_a_byte(path, places[len(places) // 3])
    assert any(name in defect for defect in single_finding(folder).defects)


def test_a_manifest_of_another_program_is_not_a_database(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(UnknownFileError):
        inspect_path(tmp_path)


def test_a_finished_run_is_intact(tmp_path):
    folder = make_run(tmp_path / "run")
    finding = single_finding(folder)
    assert (finding.kind, finding.state) == ("run", "intact")
    assert finding.facts["stages"] == "database done, search done, evaluate done"
    results = json.loads((folder / "results.json").read_text())
    assert f"KL {results['searched']['kl']['pydoc']:.4g} on pydoc" in finding.facts["searched"]


def test_an_unfinished_run_gives_the_resume_command_and_is_not_damaged(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (folder / "results.json").unlink()
    (folder / "search.jsonl").write_bytes((folder / "search.jsonl").read_bytes()[:-7])
    finding = single_finding(folder)
    assert finding.state == "unfinished"
    assert finding.unfinished == f"python -m evopress.run resume={folder}"
    assert "evaluate to do" in finding.facts["stages"]
    assert main([str(folder)]) == 0
    assert f"resume={folder}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["results.json", "profile.json", "search.jsonl"])
def test_a_damaged_file_of_a_run_is_a_defect(name, tmp_path):
    folder = make_run(tmp_path / "run")
    flip_a_byte(folder / name, 0)
    assert any(name in defect for defect in single_finding(folder).defects)


def test_a_profile_shows_its_budget_and_levels(tmp_path):
    space = bit_space([8, 8, 16, 16])
    path = tmp_path / "profile.json"
    path.write_text(to_json(space, (0, 1, 1, 2), settings={"budget": {"metric": "bits", "target": 3}}, achieved=2.875))
    finding = single_finding(path)
    assert (finding.kind, finding.state) == ("profile", "intact")
    assert finding.facts["levels"] == "4bit × 1, 3bit × 2, 2bit × 1"
    assert finding.facts["budget"] == "metric=bits target=3"
    assert finding.facts["achieved"] == "2.875"


def test_a_profile_whose_costs_do_not_add_up_is_damaged(tmp_path):
    space = bit_space([8, 8])
    profile = json.loads(to_json(space, (0, 1)))
    path = tmp_path / "profile.json"
    for damaged in (
        profile | {"cost": profile["cost"] + 1},
        profile | {"units": [{"unit": 3}]},
        profile | {"units": 3},
    ):
        path.write_text(json.dumps(damaged))
        assert single_finding(path).state == "DAMAGED"


def test_a_profile_under_another_name_is_damaged_if_its_costs_do_not_add_up(tmp_path):
    profile = json.loads(to_json(bit_space([8, 8]), (0, 1)))
    path = tmp_path / "best.json"
    path.write_text(json.dumps(profile | {"cost": profile["cost"] + 1}))
    (defect,) = single_finding(path).defects
    assert "add up to" in defect
    path.write_text(json.dumps(profile | {"units": 3}))
    with pytest.raises(
        UnknownFileError, match=r"best\.json is not an intact profile: the list of units cannot be read"
    ):
        inspect_path(path)


def test_a_text_profile_is_recognised_and_its_mistakes_are_defects(tmp_path):
    path = tmp_path / "profile.txt"
    path.write_text(to_text(bit_space([8, 8, 8]), (0, 1, 1)))
    assert single_finding(path).facts == {"layers": "3", "levels": "4 × 1, 3 × 2"}
    path.write_text(path.read_text() + "layer0: 3\nlayer7\n")
    assert single_finding(path).defects == ["line 5 is not `layer: level`", "layer0 is given twice"]


def test_packed_weights_count_with_their_unpacked_shapes(checkpoint):
    finding = single_finding(checkpoint)
    assert (finding.kind, finding.state) == ("checkpoint", "intact")
    assert finding.facts["parameters"] == str(4 * 16 + 10 * 4)
    assert finding.facts["quantisation"] == "compressed-tensors: 1 layers at 3 bits"
    assert finding.facts["architecture"] == "LlamaForCausalLM"


def test_pairs_of_four_bit_floats_count_twice_and_formats_have_names(checkpoint):
    packed = {
        "model.layers.0.q.weight_packed": torch.zeros(4, 8, dtype=torch.uint8),
        "model.layers.0.q.weight_scale": torch.ones(4, 1).to(torch.float8_e4m3fn),
        "model.layers.0.q.weight_global_scale": torch.ones(1),
    }
    (checkpoint / INDEX).unlink()
    (checkpoint / "b.safetensors").unlink()
    save_file(packed, checkpoint / "a.safetensors")
    weights = {"num_bits": 4, "type": "float"}
    group = {"targets": ["model.layers.0.q"], "weights": weights, "format": "nvfp4-pack-quantized"}
    quantization = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {"g": group}}
    (checkpoint / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    finding = single_finding(checkpoint)
    assert finding.facts["parameters"] == str(4 * 16)
    expected = "compressed-tensors, mixed-precision: 1 layers at 4 bits (nvfp4-pack-quantized)"
    assert finding.facts["quantisation"] == expected


@pytest.mark.parametrize("cut", [1, 60])
def test_a_truncated_checkpoint_file_is_a_defect(cut, checkpoint):
    path = checkpoint / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    assert any("b.safetensors" in defect for defect in single_finding(checkpoint).defects)
    assert any("b.safetensors" in defect for defect in single_finding(path).defects)


def test_a_checkpoint_without_a_file_or_tensor_of_its_index_is_damaged(checkpoint):
    save_file({"other": torch.zeros(1)}, checkpoint / "b.safetensors")
    assert any("lacks 1 tensors" in defect for defect in single_finding(checkpoint).defects)
    (checkpoint / "b.safetensors").unlink()
    assert any("b.safetensors is missing" in defect for defect in single_finding(checkpoint).defects)


def test_an_index_must_not_point_outside_its_folder(checkpoint):
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    assert any("not a file of this folder" in defect for defect in single_finding(checkpoint).defects)


def test_a_folder_with_databases_and_runs_lists_them_all(database, tmp_path, capsys):
    make_run(tmp_path / "runs/one")
    make_run(tmp_path / "runs/two")
    assert [finding.kind for finding in inspect_path(tmp_path)] == ["database", "run", "run"]
    (tmp_path / "runs/two/results.json").write_text("{")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("DAMAGED") == 1


@pytest.mark.parametrize("name", ["nothing", "model.bin", "other.json", "other.txt", "empty"])
def test_unknown_files_are_refused(name, tmp_path, capsys):
    (tmp_path / "model.bin").write_bytes(b"\x80\x04")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "other.txt").write_text("Dear Sir\n")
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert name in captured.err and not captured.out


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text()) | {"model": "\x1b[2Jgone"}
    (folder / "results.json").write_text(json.dumps(results))
    assert main([str(folder)]) == 0
    assert "\x1b" not in capsys.readouterr().out
