"""A database gives back what was put in, holds whole blocks only, and reads nothing but its own files."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from evopress.compressors.magnitude import Magnitude
from evopress.compressors.rtn import RTN
from evopress.database.build import build_database
from evopress.database.cache import DecodedLevels
from evopress.database.manifest import fingerprint
from evopress.database.store import BlockLevels, Database
from evopress.runtime.checksums import with_checksum
from evopress.runtime.files import write_atomically
from evopress.weights.base import CompressedWeight
from evopress.weights.dense import Dropped, Kept
from evopress.weights.integer import QuantizedWeight
from evopress.weights.sparse import SparseWeight
from tests.tiny_models import NUM_BLOCKS, tiny, token_windows

IDENTITY = {"model": "tiny", "settings": {"bits": [2, 3], "damp": 0.01}}
CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(rows: int, cols: int, bits: int, *, symmetric: bool = False, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, cols), generator=generator).to(torch.uint8)
    zeros = None if symmetric else torch.randint(2**bits, (rows, 2), generator=generator).to(torch.uint8)
    return QuantizedWeight.from_codes(codes, random(rows, 2, seed=seed).abs().half(), zeros=zeros, bits=bits)


WEIGHTS: dict[str, CompressedWeight] = {
    **{f"{bits} bits": quantized(6, 32, bits) for bits in range(2, 9)},
    "symmetric": quantized(5, 14, 3, symmetric=True),
    "half the weights": SparseWeight.from_dense(random(5, 13).bfloat16(), random(5, 13, seed=1) > 0),
    "all weights": SparseWeight.from_dense(random(5, 13), torch.ones(5, 13, dtype=torch.bool)),
    "no weights": SparseWeight.from_dense(random(5, 13), torch.zeros(5, 13, dtype=torch.bool)),
    "kept": Kept(random(4, 7).bfloat16()),
    "dropped": Dropped(4, 7),
}


def block(weights: list[CompressedWeight], layer: str = "layers.0.q") -> BlockLevels:
    return BlockLevels({layer: weights}, {layer: [0.1 * index for index in range(len(weights))]}, ("a note",))


def opened(root: Path, identity: dict | None = None) -> Database:
    return Database.open(root, "gptq", identity or IDENTITY)


def edit_manifest(database: Database, change) -> None:
    manifest = json.loads(database.manifest_path.read_text())
    change(manifest)
    database.manifest_path.write_text(json.dumps(with_checksum(manifest)))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_every_kind_of_weight_comes_back_as_it_was(kind, tmp_path):
    weight = WEIGHTS[kind]
    opened(tmp_path).put(3, block([Kept(random(2, 2)), weight]))
    found = opened(tmp_path).read(3, "layers.0.q", 1)
    assert type(found) is type(weight) and found.shape == weight.shape and found.spec() == weight.spec()
    assert found.tensors().keys() == weight.tensors().keys()
    assert all(torch.equal(found.tensors()[name], tensor) for name, tensor in weight.tensors().items())
    assert torch.equal(found.dense(), weight.dense()) and found.size_bytes == weight.size_bytes


def test_names_that_begin_alike_are_kept_apart(tmp_path):
    layers = {"a": [Kept(random(2, 3, seed=i)) for i in range(12)], "a@1": [Kept(random(3, 2))], "a.b": [Dropped(1, 1)]}
    opened(tmp_path).put(0, BlockLevels(layers, {name: [0.0] * len(levels) for name, levels in layers.items()}))
    database = opened(tmp_path)
    for name, levels in layers.items():
        for index, weight in enumerate(levels):
            assert torch.equal(database.read(0, name, index).dense(), weight.dense())


def test_errors_notes_and_size_come_back(tmp_path):
    opened(tmp_path).put(1, block(list(WEIGHTS.values())))
    database = opened(tmp_path)
    assert database.errors(1, "layers.0.q") == [0.1 * index for index in range(len(WEIGHTS))]
    assert database.notes == ["a note"]
    assert database.size_bytes == sum(path.stat().st_size for path in database.folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    "key", [(1, "layers.0.q", 0), (0, "layers.0.k", 0), (0, "layers.0.q", 2), (0, "layers.0.q", -1)]
)
def test_what_is_not_there_is_a_key_error(key, tmp_path):
    database = opened(tmp_path)
    database.put(0, block([Kept(random(2, 2)), Dropped(2, 2)]))
    with pytest.raises(KeyError):
        database.read(*key)


def test_an_identity_has_its_own_folder_whatever_the_order_of_its_keys(tmp_path):
    opened(tmp_path).put(0, block([Dropped(1, 1)]))
    reordered = {"settings": {"damp": 0.01, "bits": [2, 3]}, "model": "tiny"}
    assert opened(tmp_path, reordered).blocks.keys() == {0}
    for other in ({**IDENTITY, "model": "other"}, {**IDENTITY, "settings": {"bits": [3, 2], "damp": 0.01}}):
        assert opened(tmp_path, other).blocks == {}
        assert opened(tmp_path, other).folder != opened(tmp_path).folder


def test_equal_content_is_written_as_equal_bytes(tmp_path):
    for root in ("a", "b"):
        database = opened(tmp_path / root)
        for index in (1, 0) if root == "a" else (0, 1):
            database.put(index, block(list(WEIGHTS.values())))
    (first, second) = (opened(tmp_path / root).folder for root in ("a", "b"))
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.counts("faults")
@pytest.mark.parametrize("dies_at", ["block-001.safetensors", "manifest.json"])
def test_a_put_that_dies_leaves_the_blocks_before_it(dies_at, tmp_path, monkeypatch):
    database = opened(tmp_path)
    database.put(0, block([Kept(random(2, 2))]))
    replace_file = os.replace

    def dying(source, target):
        if Path(target).name == dies_at:
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("evopress.runtime.files.os.replace", dying)
        with pytest.raises(KeyboardInterrupt):
            database.put(1, block([Kept(random(2, 2, seed=1))]))
    found = opened(tmp_path)
    assert found.blocks.keys() == {0}
    assert torch.equal(found.read(0, "layers.0.q", 0).dense(), random(2, 2))
    assert not list(found.folder.glob("*.tmp"))


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr("evopress.runtime.files.os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, b"new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "bit flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes({"truncated": content[:-5], "empty": b"", "longer": content + b"\0"}[how])


@pytest.mark.counts("faults")
@pytest.mark.parametrize("how", ["truncated", "bit flipped", "empty", "longer", "deleted"])
def test_a_damaged_block_is_missing_and_built_again_to_the_same_bytes(how, tmp_path, caplog):
    lm, windows = tiny("llama"), token_windows(2, 8)
    compressor = RTN(bits=(4, 2), group_size=32)
    build_database(lm, compressor, windows, opened(tmp_path), batch_tokens=16)
    database = opened(tmp_path)
    before = {path.name: path.read_bytes() for path in database.folder.iterdir()}
    damage(database.folder / "block-001.safetensors", how)
    found = opened(tmp_path)
    assert found.blocks.keys() == {0, 2} and "block 1 is damaged" in caplog.text
    build_database(lm, compressor, windows, found, batch_tokens=16)
    assert {path.name: path.read_bytes() for path in database.folder.iterdir()} == before
    assert opened(tmp_path).blocks.keys() == set(range(NUM_BLOCKS))


@pytest.mark.counts("faults")
def test_a_manifest_of_another_identity_is_refused(tmp_path):
    database = opened(tmp_path)
    database.put(0, block([Dropped(1, 1)]))
    edit_manifest(database, lambda manifest: manifest.update(fingerprint=fingerprint({"model": "other"})))
    with pytest.raises(ValueError, match=rf"another model, text or compressor: delete {database.folder}"):
        opened(tmp_path)


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
def test_a_damaged_manifest_is_an_error_with_the_remedy(content, tmp_path):
    database = opened(tmp_path)
    database.put(0, block([Dropped(1, 1)]))
    database.manifest_path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"manifest\.json cannot be read.*delete {database.folder}"):
        opened(tmp_path)


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
def test_damaged_entries_of_a_manifest_are_an_error_or_a_missing_block(blocks, tmp_path):
    database = opened(tmp_path)
    database.put(0, block([Dropped(1, 1)]))
    edit_manifest(database, lambda manifest: manifest.update(blocks=blocks))
    try:
        assert opened(tmp_path).blocks == {}
    except ValueError as error:
        assert "manifest.json cannot be read" in str(error)


@pytest.mark.counts("hostile files")
@pytest.mark.parametrize("where", ["../secret", "absolute", "sub/../../secret", "sub/secret"])
def test_files_outside_the_folder_are_never_read(where, tmp_path):
    database = opened(tmp_path)
    database.put(0, block([Kept(random(2, 2))]))
    (database.folder / "sub").mkdir()
    for secret in (tmp_path / "secret", database.folder / "sub" / "secret"):
        secret.write_bytes((database.folder / "block-000.safetensors").read_bytes())
    name = str(tmp_path / "secret") if where == "absolute" else where
    edit_manifest(database, lambda manifest: manifest["blocks"]["0"].update(file=name))
    assert opened(tmp_path).blocks == {}


@pytest.mark.counts("faults")
def test_a_second_builder_waits_and_then_finds_the_work_done(tmp_path):
    lm, windows = tiny("llama"), token_windows(2, 8)
    compressed: list[str] = []
    entered, go_on = threading.Event(), threading.Event()

    class Slow(RTN):
        def compress(self, group):
            entered.set()
            assert go_on.wait(timeout=60)
            compressed.append(group.names[0])
            return super().compress(group)

    first, second = opened(tmp_path), opened(tmp_path)
    slow, done = Slow(bits=(4, 2), group_size=32), []

    def work(database: Database) -> None:
        build_database(lm, slow, windows, database, batch_tokens=16)
        done.append(database)

    threads = [threading.Thread(target=work, args=(database,)) for database in (first, second)]
    threads[0].start()
    assert entered.wait(timeout=60)
    threads[1].start()
    threads[1].join(timeout=0.2)
    assert threads[1].is_alive() and not done
    go_on.set()
    for thread in threads:
        thread.join(timeout=60)
    assert done == [first, second] and first.blocks == second.blocks
    assert len(compressed) == len(set(compressed)) == NUM_BLOCKS * len(lm.layer_groups)


def decoded(database: Database, limit_bytes: int, dtype: torch.dtype = torch.float32) -> DecodedLevels:
    return DecodedLevels(database, limit_bytes=limit_bytes, dtype=dtype, device=CPU)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    database = opened(tmp_path_factory.mktemp("filled"))
    for index in range(3):
        database.put(index, block([Kept(random(8, 16, seed=10 * index + level)) for level in range(3)]))
    return database


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20), st.sampled_from([1, 600, 1200, 10**9]))
def test_decoded_levels_are_right_and_stay_within_the_limit(filled, wanted, limit):
    cache = decoded(filled, limit)
    size = 8 * 16 * 4
    for block_, level in wanted:
        assert torch.equal(cache.get(block_, "layers.0.q", level), random(8, 16, seed=10 * block_ + level))
        held = sum(tensor.nbytes for tensor in cache._weights.values())
        assert held == cache.kept_bytes <= max(limit, size)


def test_decoded_levels_are_read_once_while_there_is_room(filled, monkeypatch):
    reads: list[tuple] = []
    read = Database.read
    monkeypatch.setattr(Database, "read", lambda self, *key: (reads.append(key), read(self, *key))[1])
    cache = decoded(filled, 2 * 8 * 16 * 4)
    for level in (0, 1, 0, 2, 0, 1):  # 2 pushes out 1, which was not used since
        cache.get(0, "layers.0.q", level)
    assert [level for _, _, level in reads] == [0, 1, 2, 1]


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoded_levels_are_the_packed_ones_in_the_type_asked_for(kind, dtype, tmp_path):
    database = opened(tmp_path)
    database.put(0, block([WEIGHTS[kind]]))
    found = decoded(database, 10**6, dtype).get(0, "layers.0.q", 0)
    assert found.dtype == dtype and torch.equal(found, WEIGHTS[kind].dense(torch.float32).to(dtype))


def test_a_build_holds_every_layer_at_every_level(tmp_path):
    lm = tiny("opt")
    compressor = Magnitude(base=0.5, num_levels=1, step=100)
    build_database(lm, compressor, token_windows(2, 8), opened(tmp_path), batch_tokens=16)
    database = opened(tmp_path)
    for index in range(lm.num_blocks):
        with safe_open(database.folder / f"block-{index:03d}.safetensors", "pt") as file:
            assert json.loads(file.metadata()["specs"]).keys() == {
                f"{lm.layer_name(index, local)}@{level}"
                for group in lm.layer_groups
                for local in group
                for level in range(3)
            }
