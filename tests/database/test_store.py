"""A database returns what was put in, holds only complete blocks, and reads no file but its own."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from evopress.database import block_file
from evopress.database.manifest import fingerprint
from evopress.database.store import BlockLevels, Database
from evopress.runtime.checksums import with_checksum
from evopress.runtime.files import write_atomically
from evopress.weights.base import from_tensors
from evopress.weights.dense import Dropped, Kept
from tests.databases import IDENTITY, WEIGHTS, block_levels, open_database, random_weight


def edit_manifest(database: Database, change) -> None:
    manifest = json.loads(database.manifest_path.read_text())
    change(manifest)
    database.manifest_path.write_text(json.dumps(with_checksum(manifest)))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_every_kind_of_weight_is_read_as_it_was_written(kind, tmp_path):
    weight = WEIGHTS[kind]
    open_database(tmp_path).put(3, block_levels([Kept(random_weight(2, 2)), weight]))
    stored = open_database(tmp_path).read(3, "layers.0.q", 1)
    assert type(stored) is type(weight) and stored.shape == weight.shape and stored.spec() == weight.spec()
    assert stored.tensors().keys() == weight.tensors().keys()
    assert all(torch.equal(stored.tensors()[name], tensor) for name, tensor in weight.tensors().items())
    assert torch.equal(stored.dense(), weight.dense()) and stored.size_bytes == weight.size_bytes


def test_layers_whose_names_begin_alike_are_distinguished(tmp_path):
    layers = {
        "a": [Kept(random_weight(2, 3, seed=index)) for index in range(12)],
        "a@1": [Kept(random_weight(3, 2))],
        "a.b": [Dropped(1, 1)],
    }
    open_database(tmp_path).put(0, BlockLevels(layers, {name: [0.0] * len(levels) for name, levels in layers.items()}))
    database = open_database(tmp_path)
    for name, levels in layers.items():
        for index, weight in enumerate(levels):
            assert torch.equal(database.read(0, name, index).dense(), weight.dense())


def test_a_file_is_opened_and_a_level_is_checked_once(tmp_path, monkeypatch):
    open_database(tmp_path).put(0, block_levels(list(WEIGHTS.values())))
    database, opened, checked = open_database(tmp_path), [], []
    monkeypatch.setattr(block_file, "safe_open", lambda *args: opened.append(args) or safe_open(*args))
    monkeypatch.setattr(
        block_file, "from_tensors", lambda spec, tensors: checked.append(spec) or from_tensors(spec, tensors)
    )
    for level in (*range(len(WEIGHTS)), *range(len(WEIGHTS))):
        stored = database.read(0, "layers.0.q", level)
        assert torch.equal(stored.dense(), list(WEIGHTS.values())[level].dense())
    assert len(opened) == 1
    assert checked == [weight.spec() for weight in WEIGHTS.values()]


def test_a_block_that_is_written_again_is_read_anew(tmp_path):
    database = open_database(tmp_path)
    for seed in range(2):
        database.put(0, block_levels([Kept(random_weight(2, 3, seed=seed))]))
        assert torch.equal(database.read(0, "layers.0.q", 0).dense(), random_weight(2, 3, seed=seed))


def test_a_tensor_that_belongs_to_no_level_is_ignored(tmp_path):
    path, weight = tmp_path / "file", Kept(random_weight(2, 3))
    tensors = {"a.b@0.weight": weight.weight, "stray.weight": random_weight(1), "stray": random_weight(1)}
    save_file(tensors, path, metadata={"specs": json.dumps({"a.b@0": weight.spec()})})
    assert torch.equal(block_file.BlockFile(path).read("a.b@0").dense(), weight.dense())


def test_errors_notes_and_size_are_read_as_they_were_written(tmp_path):
    open_database(tmp_path).put(1, block_levels(list(WEIGHTS.values())))
    database = open_database(tmp_path)
    assert database.errors(1, "layers.0.q") == [0.1 * index for index in range(len(WEIGHTS))]
    assert database.notes == ["a note"]
    assert database.size_bytes == sum(path.stat().st_size for path in database.folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    "key", [(1, "layers.0.q", 0), (0, "layers.0.k", 0), (0, "layers.0.q", 2), (0, "layers.0.q", -1)]
)
def test_a_missing_block_layer_or_level_is_a_key_error(key, tmp_path):
    database = open_database(tmp_path)
    database.put(0, block_levels([Kept(random_weight(2, 2)), Dropped(2, 2)]))
    with pytest.raises(KeyError):
        database.read(*key)


def test_every_identity_has_a_folder_that_does_not_depend_on_the_order_of_keys(tmp_path):
    open_database(tmp_path).put(0, block_levels([Dropped(1, 1)]))
    reordered = {"settings": {"damp": 0.01, "bits": [2, 3]}, "model": "tiny"}
    assert open_database(tmp_path, reordered).blocks.keys() == {0}
    for other in ({**IDENTITY, "model": "other"}, {**IDENTITY, "settings": {"bits": [3, 2], "damp": 0.01}}):
        assert open_database(tmp_path, other).blocks == {}
        assert open_database(tmp_path, other).folder != open_database(tmp_path).folder


def test_equal_content_is_written_as_equal_bytes(tmp_path):
    for root in ("a", "b"):
        database = open_database(tmp_path / root)
        for index in (1, 0) if root == "a" else (0, 1):
            database.put(index, block_levels(list(WEIGHTS.values())))
    (first, second) = (open_database(tmp_path / root).folder for root in ("a", "b"))
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.counts("faults")
@pytest.mark.parametrize("killed_at", ["block-001.safetensors", "manifest.json"])
def test_a_killed_put_leaves_the_blocks_before_it(killed_at, tmp_path, monkeypatch):
    database = open_database(tmp_path)
    database.put(0, block_levels([Kept(random_weight(2, 2))]))
    replace_file = os.replace

    def killing(source, target):
        if Path(target).name == killed_at:
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("evopress.runtime.files.os.replace", killing)
        with pytest.raises(KeyboardInterrupt):
            database.put(1, block_levels([Kept(random_weight(2, 2, seed=1))]))
    reopened = open_database(tmp_path)
    assert reopened.blocks.keys() == {0}
    assert torch.equal(reopened.read(0, "layers.0.q", 0).dense(), random_weight(2, 2))
    assert not list(reopened.folder.glob("*.tmp"))


def test_a_file_is_replaced_completely_or_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr("evopress.runtime.files.os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, b"new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.counts("faults")
def test_a_manifest_of_another_identity_is_rejected(tmp_path):
    database = open_database(tmp_path)
    database.put(0, block_levels([Dropped(1, 1)]))
    edit_manifest(database, lambda manifest: manifest.update(fingerprint=fingerprint({"model": "other"})))
    with pytest.raises(ValueError, match=rf"another model, text or compressor: delete {database.folder}"):
        open_database(tmp_path)


@pytest.mark.counts("hostile files")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"format": 1}',
        b'{"format": 99, "fingerprint": "", "blocks": {}}',
        b'{"format": 1, "fingerprint": "", "blocks": []}',
        b"[" * 100_000,
    ],
    ids=lambda content: content[:24],
)
def test_a_damaged_manifest_is_an_error_that_says_what_to_delete(content, tmp_path):
    database = open_database(tmp_path)
    database.put(0, block_levels([Dropped(1, 1)]))
    database.manifest_path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"manifest\.json cannot be read.*delete {database.folder}"):
        open_database(tmp_path)


@pytest.mark.counts("hostile files")
@pytest.mark.parametrize(
    "blocks",
    [
        {"0": None},
        {"0": {}},
        {"0": {"file": 5, "bytes": 1, "sha256": ""}},
        {"zero": {"file": "block-000.safetensors", "bytes": 1, "sha256": ""}},
        {"0": {"file": "block-000.safetensors", "bytes": 1}},
    ],
    ids=str,
)
def test_a_damaged_entry_is_an_error_or_a_missing_block(blocks, tmp_path):
    database = open_database(tmp_path)
    database.put(0, block_levels([Dropped(1, 1)]))
    edit_manifest(database, lambda manifest: manifest.update(blocks=blocks))
    try:
        assert open_database(tmp_path).blocks == {}
    except ValueError as error:
        assert "manifest.json cannot be read" in str(error)


@pytest.mark.counts("hostile files")
@pytest.mark.parametrize("where", ["../secret", "absolute", "sub/../../secret", "sub/secret"])
def test_files_outside_the_folder_are_never_read(where, tmp_path):
    database = open_database(tmp_path)
    database.put(0, block_levels([Kept(random_weight(2, 2))]))
    (database.folder / "sub").mkdir()
    for secret in (tmp_path / "secret", database.folder / "sub" / "secret"):
        secret.write_bytes((database.folder / "block-000.safetensors").read_bytes())
    name = str(tmp_path / "secret") if where == "absolute" else where
    edit_manifest(database, lambda manifest: manifest["blocks"]["0"].update(file=name))
    assert open_database(tmp_path).blocks == {}
