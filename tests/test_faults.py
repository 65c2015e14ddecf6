"""Full disks, changed bits, folders that cannot be written, and runs at the same time: never a wrong number."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from evopress.compressors.rtn import RTN
from evopress.data.settings import Data
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.export import Export, export
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.pipeline import Job, run_job
from evopress.runtime.checksums import with_checksum
from evopress.runtime.files import lock_folder, write_atomically
from evopress.runtime.tracking import Tracker
from evopress.search.evolution import Evolution
from evopress.search.selection import Stage
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from tests.exports import compressed
from tests.tiny_models import random_model, save_tiny, tiny, token_windows, tokenizer

pytestmark = pytest.mark.counts("faults")

PROJECT = Path(__file__).parents[1]
SEARCH = Evolution(
    generations=3,
    offspring=4,
    stages=[Stage(survivors=2, tokens=32), Stage(survivors=1, tokens=64)],
    initial_candidates=4,
    initial_tokens=32,
)

EVERYTHING = ("database", "search", "evaluate")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny("llama", folder)
    return folder


def job(folder: Path, model: Path, **changes) -> Job:
    settings = dict(
        model=ModelSource(name="tiny", path=str(model), dtype="float32", device="cpu", max_perplexity=1e6),
        data=Data(
            source="pydoc", window=32, calibration_tokens=64, search_tokens=256, validation_tokens=64, test_tokens=64
        ),
        compress=RTN(bits=[2, 3, 4], group_size=32),
        space=SpaceSettings(),
        budget=Budget(metric="bits", target=3),
        search=SEARCH,
        evaluator=EvaluatorSettings(),
        eval=Eval(),
        tracker=Tracker(),
        stages=("database", "search"),
        folder=folder / "run",
        outputs=folder,
    )
    return Job(**{**settings, **changes})


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on what went wrong on the way."""
    paths = [folder / "run" / name for name in ("search.jsonl", "profile.json", "profile.txt")]
    paths += sorted(folder.glob("databases/*/*/*.safetensors")) + sorted(folder.glob("databases/*/*/manifest.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def measured(folder: Path) -> dict:
    found = json.loads((folder / "run" / "results.json").read_text())
    return {name: found[name] for name in ("dense", "uniform", "searched", "tokens", "data")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model) -> Path:
    """A run to which nothing happened."""
    folder = tmp_path_factory.mktemp("whole")
    run_job(job(folder, model, stages=EVERYTHING))
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    """A copy of that run, to be damaged."""
    return shutil.copytree(whole, tmp_path, dirs_exist_ok=True)


def full_disk(monkeypatch, name: str, nth: int):
    """The `nth` write of a file `name` stops half way, as on a disk that is full."""
    import builtins

    real, left = builtins.open, iter(range(nth))

    def limited(file, mode="r", *args, **kwargs):
        opened = real(file, mode, *args, **kwargs)
        if name in Path(str(file)).name and mode in ("a", "wb") and next(left, None) is None:
            write = opened.write

            class Full:
                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    opened.close()

                def write(self, content):
                    write(content[: len(content) // 2])
                    opened.flush()
                    raise OSError(28, "No space left on device")

            return Full()
        return opened

    monkeypatch.setattr("builtins.open", limited)


@pytest.mark.parametrize(
    ("name", "nth"),
    [
        ("block-001", 0),
        ("manifest.json", 1),
        ("search.jsonl", 1),
        ("profile.txt", 0),
        ("profile.json", 0),
        ("results.json", 0),
        ("metrics.jsonl", 2),
    ],
)
def test_a_full_disk_names_the_file_and_costs_nothing_but_time(name, nth, whole, model, tmp_path, monkeypatch):
    stages = EVERYTHING if name == "results.json" else EVERYTHING[:2]
    with monkeypatch.context() as patch:
        full_disk(patch, name, nth)
        with pytest.raises(OSError, match=rf"No space left on device: '.*{name}"):
            run_job(job(tmp_path, model, stages=stages))
    run_job(job(tmp_path, model, stages=stages))
    assert outcome(tmp_path) == outcome(whole)
    assert stages != EVERYTHING or measured(tmp_path) == measured(whole)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_limit_on_the_size_of_files_leaves_no_half_file(tmp_path):
    """The same from the operating system: a process whose files may hold 4096 bytes."""
    script = "import sys; from pathlib import Path; from evopress.runtime.files import write_atomically as w\n"
    script += "w(Path(sys.argv[1]), b'x' * 4000)\nw(Path(sys.argv[1]), b'y' * 5000)\n"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        [sys.executable, "-B", "-c", script, str(tmp_path / "file")],
        cwd=PROJECT,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"File too large: '{tmp_path}/file'" in done.stderr
    assert (tmp_path / "file").read_bytes() == b"x" * 4000
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def small_disk(tmp_path):
    """Builds a file system of so many kilobytes; read-only with "ro"."""
    mounted = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def start(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "evopress.run", *arguments],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


TINY = [f"data.{split}_tokens=512" for split in ("calibration", "search", "validation", "test")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size=600k", "ERROR] - [Errno 28] No space left on device"),
        ("ro", "the run folder cannot be written ([Errno 30] Read-only file system"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_message_without_traceback(options, message, small_disk):
    folder = small_disk(options)
    done = start(f"outputs={folder}", f"hydra.run.dir={folder}/run", *TINY)
    output = done.stdout + done.stderr
    assert done.returncode in (1, 2) and message in output
    assert "Traceback" not in output
    if options != "ro":
        assert f"resume={folder}/run" in output
    assert not list(folder.rglob("*.tmp"))


@pytest.fixture(scope="module")
def exported(whole, model, tmp_path_factory) -> Path:
    """The same run, with a checkpoint."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("exported"), dirs_exist_ok=True)
    run_job(job(folder, model, stages=EVERYTHING, export=Export(formats=["hf"])))
    return folder


def size_of(folder: Path) -> int:
    """Bytes of the pages that a tmpfs needs for it."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_disk_that_fills_up_during_the_export_costs_the_export_only(
    share, exported, whole, model, small_disk, tmp_path, monkeypatch
):
    shutil.copytree(whole, tmp_path / "made")
    small = size_of(whole / "run") + int(share * size_of(exported / "run" / "checkpoints")) + 32768
    disk = small_disk(f"size={small}")
    shutil.copytree(whole / "run", disk / "run", ignore=shutil.ignore_patterns("plots", "report.html"))
    this = replace(job(tmp_path / "made", model, stages=EVERYTHING, export=Export(formats=["hf"])), folder=disk / "run")
    filler = disk / "filler"  # plots and report come after the export
    filler.write_bytes(bytes(size_of(whole / "run") - size_of(disk / "run")))
    with pytest.raises(OSError, match=r"No space left on device: '.*checkpoints/hf'"):
        run_job(this)
    assert list((disk / "run" / "checkpoints").iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=40M", disk], check=True)
    monkeypatch.setattr(Evaluator, "compare", only_dense(Evaluator.compare))
    run_job(this)
    name = "checkpoints/hf/model.safetensors"
    assert (disk / "run" / name).read_bytes() == (exported / "run" / name).read_bytes()
    assert (disk / "run" / "report.html").exists()
    assert measured(disk) == measured(exported)


def only_dense(compare):
    """An evaluator that measures the dense model and refuses to measure anything again."""

    def refusing(self, profiles, *args, **kwargs):
        assert list(profiles) == [None], "this was measured already"
        return compare(self, profiles, *args, **kwargs)

    return refusing


def test_what_a_killed_export_left_is_cleared_away(exported, whole, model, copied):
    for name in ("checkpoints/.hf-abc123/model.safetensors", ".profile.json.77.tmp"):
        (copied / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / "run" / name).write_bytes(bytes(1000))
    database = next(copied.glob("databases/*/*/manifest.json")).parent
    (database / ".block-001.safetensors.77.tmp").write_bytes(bytes(1000))
    run_job(job(copied, model, stages=EVERYTHING, export=Export(formats=["hf"])))
    assert [path.name for path in (copied / "run" / "checkpoints").iterdir()] == ["hf"]
    assert not list(copied.rglob("*.tmp"))


def test_a_read_only_outputs_folder_beside_a_good_run_folder_is_one_message(small_disk, tmp_path):
    folder = small_disk("ro")
    done = start(f"outputs={folder}/outputs", f"hydra.run.dir={tmp_path}/run", *TINY)
    assert done.returncode == 2 and "Read-only file system" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) * 2 // 3]
    else:  # the lowest bit of a digit, which leaves it a digit: what only a checksum finds
        digits = [place for place, byte in enumerate(content) if byte in b"23456789"]
        before = values(content)
        for place in digits[len(digits) * int(how) // 4 :]:
            content[place] ^= 1
            if before is None or values(content) != before:  # the last digit of a float may not count
                break
    path.write_bytes(content)


def values(content: bytes) -> list | None:
    """What the JSON in a file, or in each of its lines, says; None where it is none."""
    for documents in ([content], content.splitlines()):
        try:
            return [json.loads(document) for document in documents]
        except ValueError:
            continue
    return None


@pytest.mark.parametrize("how", ["truncated", "1", "2", "3"])
def test_a_damaged_profile_is_made_again(how, whole, model, copied):
    damage(copied / "run" / "profile.json", how)
    run_job(job(copied, model))
    assert outcome(copied) == outcome(whole)


@pytest.mark.parametrize("name", ["profile.json", "results.json", "seconds.json"])
def test_a_file_without_its_checksum_is_made_again(name, whole, model, copied, caplog):
    path = copied / "run" / name
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    run_job(job(copied, model, stages=EVERYTHING))
    assert f"{name} is damaged (it has no sha256) and will be made again" in caplog.text
    assert outcome(copied) == outcome(whole) and measured(copied) == measured(whole)
    assert "sha256" in json.loads(path.read_text())


@pytest.mark.parametrize("how", ["truncated", "1"])
def test_a_damaged_text_profile_is_written_again_from_the_other(how, whole, model, copied):
    damage(copied / "run" / "profile.txt", how)
    run_job(job(copied, model))
    assert outcome(copied) == outcome(whole)


def test_a_run_killed_while_it_drew_its_report_draws_it_and_measures_nothing_again(whole, model, copied, monkeypatch):
    """The results are marked as done after everything else is there."""
    path = copied / "run" / "results.json"
    content = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("done", "sha256")}
    path.write_text(json.dumps(with_checksum(content)))
    (copied / "run" / "report.html").unlink()
    monkeypatch.setattr(Evaluator, "compare", only_dense(Evaluator.compare))
    run_job(job(copied, model, stages=EVERYTHING))
    assert (copied / "run" / "report.html").exists() and measured(copied) == measured(whole)


@pytest.mark.parametrize("how", ["truncated", "1", "3"])
def test_damaged_cached_tokens_are_made_again(how, whole, model, copied, caplog):
    cached = list(copied.glob("cache/tokens/*"))
    before = {path: path.read_bytes() for path in cached}
    for path, content in before.items():
        place = 0 if how == "truncated" else len(content) * int(how) // 4
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) * (how != "truncated") + content[place + 1 :])
    (copied / "run" / "profile.json").unlink()
    run_job(job(copied, model, stages=EVERYTHING))
    assert caplog.text.count("will be made again") == len(cached)
    assert {path: path.read_bytes() for path in cached} == before
    assert outcome(copied) == outcome(whole)


def test_a_flipped_bit_in_a_converted_model_is_found_and_the_model_converted_again(tmp_path, monkeypatch, caplog):
    searched = compressed(tiny("llama"), RTN(bits=(8, 4), group_size=32, symmetric=True), tmp_path)
    export(Export(formats=["gguf"]), searched, token_windows(2, 16), facts={"model": "t"}, folder=tmp_path)
    read = AutoTokenizer.from_pretrained

    def reading(path, **options):  # a byte-level tokenizer is not among those that transformers reads from GGUF
        return tokenizer() if "gguf_file" in options else read(path, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", reading)
    source = ModelSource(name="t", path=str(next(tmp_path.rglob("*.gguf"))), dtype="float32", device="cpu")
    first = load_model(source, tmp_path).identity
    (weights,) = tmp_path.glob("models/*/model.safetensors")
    made = weights.stat().st_mtime_ns
    assert load_model(source, tmp_path).identity == first and weights.stat().st_mtime_ns == made
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    assert load_model(source, tmp_path).identity == first
    assert "is damaged and will be made again" in caplog.text


def test_a_second_process_in_the_same_run_directory_is_turned_away(model, copied, whole):
    with lock_folder(copied / "run"), pytest.raises(ValueError, match=r"another process runs in .*run: wait for it"):
        run_job(job(copied, model))
    assert outcome(copied) == outcome(whole)


def test_damaged_results_are_made_again(whole, model, copied):
    damage(copied / "run" / "results.json", "2")
    damage(copied / "run" / "seconds.json", "truncated")
    run_job(job(copied, model, stages=EVERYTHING))
    assert measured(copied) == measured(whole)


def test_a_search_log_without_checksums_is_refused(model, copied):
    (copied / "run" / "profile.json").unlink()
    path = copied / "run" / "search.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "sha256"}) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"search\.jsonl is damaged \(it has no sha256\): delete it"):
        run_job(job(copied, model))


@pytest.mark.parametrize("how", ["1", "2", "3"])
def test_a_changed_digit_in_the_search_log_is_found(how, model, copied):
    (copied / "run" / "profile.json").unlink()
    damage(copied / "run" / "search.jsonl", how)
    with pytest.raises(ValueError, match=r"search\.jsonl is damaged .*delete it"):
        run_job(job(copied, model))


def test_a_truncated_search_log_goes_on_to_the_same_bytes(whole, model, copied):
    (copied / "run" / "profile.json").unlink()
    damage(copied / "run" / "search.jsonl", "truncated")
    run_job(job(copied, model))
    assert outcome(copied) == outcome(whole)


@pytest.mark.parametrize("how", ["truncated", "1", "3"])
def test_a_damaged_block_is_built_again(how, whole, model, copied):
    damage(next(copied.glob("databases/*/*/block-001.safetensors")), how)
    run_job(job(copied, model))
    assert outcome(copied) == outcome(whole)


@pytest.mark.parametrize("how", ["truncated", "1", "2", "3"])
def test_a_damaged_manifest_is_refused(how, model, copied):
    damage(next(copied.glob("databases/*/*/manifest.json")), how)
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read.*delete"):
        run_job(job(copied, model))


def test_two_processes_at_once_build_one_database(tmp_path):
    def begin(name: str) -> subprocess.Popen:
        arguments = [f"outputs={tmp_path}", f"hydra.run.dir={tmp_path}/{name}", "stages=[database]", *TINY]
        return subprocess.Popen(
            [sys.executable, "-m", "evopress.run", *arguments],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    processes = [begin("a"), begin("b")]
    output = "".join(process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], output
    assert output.count("building database") == output.count("is complete") == 1
    assert len(list(tmp_path.glob("databases/*/*/manifest.json"))) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"budget": Budget(metric="bits", target=2.5)}, "budget"),
        ({"search": replace(SEARCH, generations=4)}, "search"),
        ({"space": SpaceSettings(trade="any")}, "space"),
        ({"evaluator": EvaluatorSettings(fitness="perplexity")}, "evaluator"),
        ({"compress": RTN(bits=[2, 3, 4], group_size=16)}, "depends_on"),
    ],
    ids=str,
)
def test_a_run_resumed_with_other_settings_is_refused(changes, named, whole, model, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")  # another compressor builds its own database there
    before = outcome(copy)
    with pytest.raises(ValueError, match=rf"other settings \(.*{named}.*\): resume with the same ones"):
        run_job(job(copy, model, **changes))
    after = outcome(copy)
    assert {name: after[name] for name in before} == before


def other_weights(folder: Path) -> None:
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] += 1e-3
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def test_a_database_of_anything_else_has_another_fingerprint(model, tmp_path):
    def fingerprints() -> set[str]:
        return {path.parent.name for path in tmp_path.glob("databases/tiny/*/manifest.json")}

    other_weights(tmp_path / "other")
    base = job(tmp_path, model, stages=("database",))
    source = base.model
    (tmp_path / "text.txt").write_text("Another text, which goes on and on and says little. " * 100)
    others = [
        base,
        replace(base, model=replace(source, path=str(tmp_path / "other"))),
        replace(base, model=replace(source, dtype="bfloat16")),
        replace(base, data=replace(base.data, calibration_tokens=96)),
        replace(base, data=replace(base.data, source=str(tmp_path / "text.txt"))),
        replace(base, compress=RTN(bits=[2, 3, 4], group_size=32, symmetric=True)),
    ]
    for number, other in enumerate(others, start=1):
        run_job(replace(other, folder=tmp_path / f"run{number}"))
        assert len(fingerprints()) == number


def test_the_same_settings_give_the_same_bytes(whole, model, tmp_path):
    run_job(job(tmp_path, model))
    assert outcome(tmp_path) == outcome(whole)


def test_another_number_of_threads_changes_fitness_by_rounding_only(whole, model, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(3 if threads != 3 else 2)
    try:
        asked = [json.loads(line) for line in (whole / "run" / "search.jsonl").read_text().splitlines()[1:]]
        run_job(replace(job(tmp_path, model), folder=tmp_path / "again"))
    finally:
        torch.set_num_threads(threads)
    again = [json.loads(line) for line in (tmp_path / "again" / "search.jsonl").read_text().splitlines()[1:]]
    same = [(a, b) for a, b in zip(asked, again, strict=False) if a["profiles"] == b["profiles"]]
    assert same and same[0][0] is asked[0]
    for first, second in same:
        assert second["answer"] == pytest.approx(first["answer"], rel=1e-4, abs=1e-6)


def test_a_write_that_fails_names_its_file(tmp_path):
    with pytest.raises(OSError, match="nowhere/file"):
        write_atomically(tmp_path / "nowhere" / "file", "x")


def test_the_fitness_on_record_is_that_of_the_profile(whole, model, monkeypatch):
    """A finished run answers from its files: were they wrong, nothing would notice."""
    monkeypatch.setattr(Evaluator, "evaluate", None)
    found = json.loads((whole / "run" / "profile.json").read_text())
    assert run_job(job(whole, model)) == tuple(unit["level"] for unit in found["units"])
