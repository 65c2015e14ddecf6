"""A build that is killed, damaged or started twice ends in the same bytes."""

import threading
from pathlib import Path

import pytest

from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.database.build import BatchLimits, build_database
from evopress.database.store import Database
from tests.databases import BITS, WINDOWS, Killed, built, database_in, open_database, recording_gptq
from tests.marks import slow_except
from tests.tiny_models import NUM_BLOCKS, tiny, token_windows


def test_hidden_states_in_a_file_give_the_same_bytes_and_the_file_disappears(tmp_path):
    for folder, states_gb in (("memory", 1.0), ("file", 1e-6)):
        build_database(
            tiny("opt"),
            BITS,
            WINDOWS,
            database_in(tmp_path / folder),
            limits=BatchLimits(batch_tokens=60, states_gb=states_gb),
        )
    names = [sorted(path.name for path in database_in(tmp_path / x).folder.iterdir()) for x in ("memory", "file")]
    assert names[0] == names[1] and not any("states" in name for name in names[0])
    for name in names[0]:
        contents = [(database_in(tmp_path / x).folder / name).read_bytes() for x in ("memory", "file")]
        assert contents[0] == contents[1]


@pytest.mark.parametrize("family", slow_except(("llama", "gemma3_text"), ("llama",)))
@pytest.mark.parametrize("lives", [0, 5, 11])
def test_a_killed_build_continues_to_the_same_bytes(lives, family, tmp_path):
    lm = tiny(family)
    whole = built(lm, BITS, tmp_path / "whole")
    with pytest.raises(Killed):
        built(lm, recording_gptq(lives)[0], tmp_path / "killed")
    compressor, groups = recording_gptq()
    resumed = built(lm, compressor, tmp_path / "killed")
    assert len(groups) == 12 - lives // 4 * 4
    assert sorted(path.name for path in resumed.folder.iterdir()) == sorted(p.name for p in whole.folder.iterdir())
    for path in whole.folder.iterdir():
        assert (resumed.folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_only_a_lost_block_is_built_again_to_the_same_bytes(lost, tmp_path):
    lm = tiny("llama")
    database = built(lm, BITS, tmp_path)
    path = database.folder / f"block-{lost:03d}.safetensors"
    content = path.read_bytes()
    path.unlink()
    compressor, groups = recording_gptq()
    built(lm, compressor, tmp_path)
    assert path.read_bytes() == content
    assert {group.names[0].split(".")[2] for group in groups} == {str(lost)}


def test_a_complete_database_is_not_built_again(tmp_path):
    lm = tiny("llama")
    built(lm, BITS, tmp_path)
    built(lm, recording_gptq(0)[0], tmp_path)


def test_a_build_solves_missing_embeddings_and_head_to_the_same_bytes(tmp_path):
    lm, compressor = tiny("llama"), GGUF(types=("Q8_0", "Q4_0"))
    whole = built(lm, compressor, tmp_path / "whole")
    database = built(lm, compressor, tmp_path / "again")
    content = (database.folder / "outside.safetensors").read_bytes()
    (database.folder / "outside.safetensors").unlink()
    again = built(lm, compressor, tmp_path / "again")
    assert (again.folder / "outside.safetensors").read_bytes() == content
    assert again.blocks == whole.blocks


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
def test_a_damaged_block_counts_as_missing_and_is_built_again_to_the_same_bytes(how, tmp_path, caplog):
    lm, windows = tiny("llama"), token_windows(2, 8)
    compressor = RTN(bits=(4, 2), group_size=32)
    build_database(lm, compressor, windows, open_database(tmp_path), limits=BatchLimits(batch_tokens=16))
    database = open_database(tmp_path)
    before = {path.name: path.read_bytes() for path in database.folder.iterdir()}
    damage(database.folder / "block-001.safetensors", how)
    reopened = open_database(tmp_path)
    assert reopened.blocks.keys() == {0, 2} and "block-001.safetensors is damaged" in caplog.text
    build_database(lm, compressor, windows, reopened, limits=BatchLimits(batch_tokens=16))
    assert {path.name: path.read_bytes() for path in database.folder.iterdir()} == before
    assert open_database(tmp_path).blocks.keys() == set(range(NUM_BLOCKS))


def test_the_log_counts_embeddings_and_head_and_names_their_file(tmp_path, caplog):
    caplog.set_level("INFO")
    lm, windows, compressor = tiny("llama"), token_windows(2, 8), GGUF(types=("Q8_0", "Q4_0"))
    build_database(lm, compressor, windows, open_database(tmp_path), limits=BatchLimits(batch_tokens=16))
    assert "0 of 4 blocks done" in caplog.text
    damage(open_database(tmp_path).folder / "outside.safetensors", "truncated")
    build_database(lm, compressor, windows, open_database(tmp_path), limits=BatchLimits(batch_tokens=16))
    assert "outside.safetensors is damaged" in caplog.text and "3 of 4 blocks done" in caplog.text


@pytest.mark.counts("faults")
def test_a_second_build_waits_and_then_finds_the_database_complete(tmp_path):
    lm, windows = tiny("llama"), token_windows(2, 8)
    compressed: list[str] = []
    entered, go_on = threading.Event(), threading.Event()

    class Slow(RTN):
        def compress(self, group):
            entered.set()
            assert go_on.wait(timeout=60)
            compressed.append(group.names[0])
            return super().compress(group)

    first, second = open_database(tmp_path), open_database(tmp_path)
    slow, done = Slow(bits=(4, 2), group_size=32), []

    def work(database: Database) -> None:
        build_database(lm, slow, windows, database, limits=BatchLimits(batch_tokens=16))
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
    assert len(compressed) == len(set(compressed)) == NUM_BLOCKS * len(lm.layer_groups(0))
