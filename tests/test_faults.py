"""Full disks, flipped bits, read-only folders and simultaneous runs never lead to a wrong number."""

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

from evopress.compressors.gptq import GPTQ
from evopress.compressors.rtn import RTN
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.export import Export, write_checkpoints
from evopress.job import Job
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.pipeline import run_job
from evopress.runtime.checksums import with_checksum
from evopress.runtime.files import lock_folder, write_atomically
from evopress.search.encoding import decode
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from tests.exports import compressed
from tests.jobs import DATA, SEARCH, small_job
from tests.tiny_models import random_model, save_tiny, tiny, token_windows, tokenizer

pytestmark = pytest.mark.counts("faults")

PROJECT = Path(__file__).parents[1]
EVERYTHING = ("database", "search", "evaluate")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny("llama", folder)
    return folder


def job(folder: Path, model: Path, **changes) -> Job:
    """A small job without calibration, in `folder`/run; by default it does not evaluate."""
    settings = dict(
        data=replace(DATA, calibration_tokens=64, test_tokens=64),
        compress=RTN(bits=[2, 3, 4], group_size=32),
        stages=("database", "search"),
    )
    return small_job(folder / "run", folder, model, **{**settings, **changes})


def outcome(folder: Path) -> dict[str, bytes]:
    """The content of all files that must not depend on faults during the run."""
    paths = [folder / "run" / name for name in ("search.jsonl", "profile.json", "profile.txt")]
    paths += sorted(folder.glob("databases/*/*/*.safetensors")) + sorted(folder.glob("databases/*/*/manifest.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def measured(folder: Path) -> dict:
    results = json.loads((folder / "run" / "results.json").read_text())
    return {name: results[name] for name in ("dense", "uniform", "searched", "tokens", "data")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_job(job(folder, model, stages=EVERYTHING))
    return folder


@pytest.fixture
def copied(undisturbed, tmp_path) -> Path:
    """A copy of the undisturbed run, to be damaged."""
    return shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)


def full_disk(monkeypatch, name: str, nth: int):
    """Make the `nth` write to a file `name` stop half way, as on a full disk."""
    import builtins

    real_open, remaining = builtins.open, iter(range(nth))

    def limited(file, mode="r", *args, **kwargs):
        opened = real_open(file, mode, *args, **kwargs)
        if name in Path(str(file)).name and mode in ("a", "wb") and next(remaining, None) is None:
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


@pytest.mark.slow
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
def test_a_full_disk_is_an_error_with_the_file_name_and_a_rerun_gives_the_same_bytes(
    name, nth, undisturbed, model, tmp_path, monkeypatch
):
    stages = EVERYTHING if name == "results.json" else EVERYTHING[:2]
    with monkeypatch.context() as patch:
        full_disk(patch, name, nth)
        with pytest.raises(OSError, match=rf"No space left on device: '.*{name}"):
            run_job(job(tmp_path, model, stages=stages))
    run_job(job(tmp_path, model, stages=stages))
    assert outcome(tmp_path) == outcome(undisturbed)
    assert stages != EVERYTHING or measured(tmp_path) == measured(undisturbed)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_file_size_limit_leaves_no_partial_file(tmp_path):
    """The operating system limits the files of a process to 4096 bytes."""
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
    """A function that mounts a file system with options such as "size=600k" or "ro"."""
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size=600k", "ERROR] - [Errno 28] No space left on device"),
        ("ro", "the run folder cannot be written ([Errno 30] Read-only file system"),
    ],
)
def test_an_unusable_disk_is_one_message_without_traceback(options, message, small_disk):
    folder = small_disk(options)
    done = start(f"outputs={folder}", f"hydra.run.dir={folder}/run", *TINY)
    output = done.stdout + done.stderr
    assert done.returncode in (1, 2) and message in output
    assert "Traceback" not in output
    if options != "ro":
        assert f"resume={folder}/run" in output
    assert not list(folder.rglob("*.tmp"))


@pytest.fixture(scope="module")
def exported(undisturbed, model, tmp_path_factory) -> Path:
    """The undisturbed run, with a checkpoint."""
    folder = shutil.copytree(undisturbed, tmp_path_factory.mktemp("exported"), dirs_exist_ok=True)
    run_job(job(folder, model, stages=EVERYTHING, export=Export(formats=["hf"])))
    return folder


def size_of(folder: Path) -> int:
    """Bytes of the pages that a tmpfs needs for a folder."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_disk_that_fills_up_during_the_export_loses_only_the_export(  # noqa: PLR0913 - pytest fixtures
    share, exported, undisturbed, model, small_disk, tmp_path, monkeypatch
):
    shutil.copytree(undisturbed, tmp_path / "made")
    small = size_of(undisturbed / "run") + int(share * size_of(exported / "run" / "checkpoints")) + 32768
    disk = small_disk(f"size={small}")
    shutil.copytree(undisturbed / "run", disk / "run", ignore=shutil.ignore_patterns("plots", "report.html"))
    on_small_disk = replace(
        job(tmp_path / "made", model, stages=EVERYTHING, export=Export(formats=["hf"])), folder=disk / "run"
    )
    filler = disk / "filler"  # keeps room for plots and report, which come after the export
    filler.write_bytes(bytes(size_of(undisturbed / "run") - size_of(disk / "run")))
    with pytest.raises(OSError, match=r"No space left on device: '.*checkpoints/hf'"):
        run_job(on_small_disk)
    assert list((disk / "run" / "checkpoints").iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=40M", disk], check=True)
    monkeypatch.setattr(Evaluator, "measure", only_dense(Evaluator.measure))
    run_job(on_small_disk)
    name = "checkpoints/hf/model.safetensors"
    assert (disk / "run" / name).read_bytes() == (exported / "run" / name).read_bytes()
    assert (disk / "run" / "report.html").exists()
    assert measured(disk) == measured(exported)


def only_dense(measure):
    """Wrap `Evaluator.measure` so that it measures the dense model only."""

    def measure_dense(self, profiles, *args, **kwargs):
        assert list(profiles) == [None], "this was measured already"
        return measure(self, profiles, *args, **kwargs)

    return measure_dense


@pytest.mark.slow
def test_leftovers_of_a_killed_export_are_deleted(exported, undisturbed, model, copied):
    for name in ("checkpoints/.hf-abc123/model.safetensors", ".profile.json.77.tmp"):
        (copied / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / "run" / name).write_bytes(bytes(1000))
    database = next(copied.glob("databases/*/*/manifest.json")).parent
    (database / ".block-001.safetensors.77.tmp").write_bytes(bytes(1000))
    run_job(job(copied, model, stages=EVERYTHING, export=Export(formats=["hf"])))
    assert [path.name for path in (copied / "run" / "checkpoints").iterdir()] == ["hf"]
    assert not list(copied.rglob("*.tmp"))


@pytest.mark.slow
def test_a_read_only_outputs_folder_with_a_writable_run_folder_is_one_message(small_disk, tmp_path):
    folder = small_disk("ro")
    done = start(f"outputs={folder}/outputs", f"hydra.run.dir={tmp_path}/run", *TINY)
    assert done.returncode == 2 and "Read-only file system" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) * 2 // 3]
    else:  # flip the lowest bit of a digit, which stays a digit, so that only a checksum detects it
        digits = [position for position, byte in enumerate(content) if byte in b"23456789"]
        before = values(content)
        for position in digits[len(digits) * int(how) // 4 :]:
            content[position] ^= 1
            if before is None or values(content) != before:  # the last digit of a float may not change its value
                break
    path.write_bytes(content)


def values(content: bytes) -> list | None:
    """The values in a JSON or JSON lines file; None if it is neither."""
    for documents in ([content], content.splitlines()):
        try:
            return [json.loads(document) for document in documents]
        except ValueError:
            continue
    return None


@pytest.mark.parametrize("how", ["truncated", "1", "2", "3"])
def test_a_damaged_profile_is_recreated(how, undisturbed, model, copied):
    damage(copied / "run" / "profile.json", how)
    run_job(job(copied, model))
    assert outcome(copied) == outcome(undisturbed)


@pytest.mark.parametrize("name", ["profile.json", "results.json", "seconds.json"])
def test_a_file_without_its_checksum_is_recreated(name, undisturbed, model, copied, caplog):
    path = copied / "run" / name
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    run_job(job(copied, model, stages=EVERYTHING))
    assert f"{name} is damaged (it has no sha256) and will be recreated" in caplog.text
    assert outcome(copied) == outcome(undisturbed) and measured(copied) == measured(undisturbed)
    assert "sha256" in json.loads(path.read_text())


@pytest.mark.parametrize("how", ["truncated", "1"])
def test_a_damaged_text_profile_is_rewritten_from_profile_json(how, undisturbed, model, copied):
    damage(copied / "run" / "profile.txt", how)
    run_job(job(copied, model))
    assert outcome(copied) == outcome(undisturbed)


@pytest.mark.slow
def test_a_run_killed_during_its_report_writes_it_without_measuring_again(undisturbed, model, copied, monkeypatch):
    """The results are marked as done only after all other files are written."""
    path = copied / "run" / "results.json"
    content = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("done", "sha256")}
    path.write_text(json.dumps(with_checksum(content)))
    (copied / "run" / "report.html").unlink()
    monkeypatch.setattr(Evaluator, "measure", only_dense(Evaluator.measure))
    run_job(job(copied, model, stages=EVERYTHING))
    assert (copied / "run" / "report.html").exists() and measured(copied) == measured(undisturbed)


@pytest.mark.parametrize("how", ["truncated", "1", "3"])
def test_damaged_cached_tokens_are_recreated(how, undisturbed, model, copied, caplog):
    cached = list(copied.glob("cache/tokens/*"))
    before = {path: path.read_bytes() for path in cached}
    for path, content in before.items():
        position = 0 if how == "truncated" else len(content) * int(how) // 4
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) * (how != "truncated") + content[position + 1 :]
        )
    (copied / "run" / "profile.json").unlink()
    run_job(job(copied, model, stages=EVERYTHING))
    assert caplog.text.count("will be recreated") == len(cached)
    assert {path: path.read_bytes() for path in cached} == before
    assert outcome(copied) == outcome(undisturbed)


@pytest.mark.slow
def test_a_converted_model_with_a_flipped_bit_is_converted_again(tmp_path, monkeypatch, caplog):
    searched = compressed(tiny("llama"), RTN(bits=(8, 4), group_size=32, symmetric=True), tmp_path)
    write_checkpoints(
        Export(formats=["gguf"]), searched, tokens=token_windows(2, 16), facts={"model": "t"}, folder=tmp_path
    )
    read = AutoTokenizer.from_pretrained

    def reading(path, **options):  # transformers cannot read a byte-level tokenizer from GGUF
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
    assert "is damaged and will be recreated" in caplog.text


def test_a_second_process_in_the_same_run_directory_is_refused(model, copied, undisturbed):
    with lock_folder(copied / "run"), pytest.raises(ValueError, match=r"another process is using .*run: wait for it"):
        run_job(job(copied, model))
    assert outcome(copied) == outcome(undisturbed)


@pytest.mark.slow
def test_damaged_results_are_recreated(undisturbed, model, copied):
    damage(copied / "run" / "results.json", "2")
    damage(copied / "run" / "seconds.json", "truncated")
    run_job(job(copied, model, stages=EVERYTHING))
    assert measured(copied) == measured(undisturbed)


def test_a_search_log_without_checksums_is_refused(model, copied):
    (copied / "run" / "profile.json").unlink()
    path = copied / "run" / "search.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "sha256"}) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"search\.jsonl is damaged \(it has no sha256\): delete it"):
        run_job(job(copied, model))


@pytest.mark.parametrize("how", ["1", "2", "3"])
def test_a_changed_digit_in_the_search_log_is_detected(how, model, copied):
    (copied / "run" / "profile.json").unlink()
    damage(copied / "run" / "search.jsonl", how)
    with pytest.raises(ValueError, match=r"search\.jsonl is damaged .*delete it"):
        run_job(job(copied, model))


def test_a_truncated_search_log_is_continued_to_the_same_bytes(undisturbed, model, copied):
    (copied / "run" / "profile.json").unlink()
    damage(copied / "run" / "search.jsonl", "truncated")
    run_job(job(copied, model))
    assert outcome(copied) == outcome(undisturbed)


@pytest.mark.parametrize("how", ["truncated", "1", "3"])
def test_a_damaged_block_is_rebuilt(how, undisturbed, model, copied):
    damage(next(copied.glob("databases/*/*/block-001.safetensors")), how)
    run_job(job(copied, model))
    assert outcome(copied) == outcome(undisturbed)


@pytest.mark.parametrize("how", ["truncated", "1", "2", "3"])
def test_a_damaged_manifest_is_refused(how, model, copied):
    damage(next(copied.glob("databases/*/*/manifest.json")), how)
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read.*delete"):
        run_job(job(copied, model))


@pytest.mark.slow
def test_two_simultaneous_processes_build_one_database(tmp_path):
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
def test_resuming_with_other_settings_is_refused(changes, named, undisturbed, model, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")  # another compressor adds its database there
    before = outcome(copy)
    with pytest.raises(ValueError, match=rf"other settings \(.*{named}.*\): resume with the same settings"):
        run_job(job(copy, model, **changes))
    after = outcome(copy)
    assert {name: after[name] for name in before} == before


def other_weights(folder: Path) -> None:
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] += 1e-3
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@pytest.mark.slow
def test_whatever_changes_a_database_changes_its_fingerprint(model, tmp_path):
    def fingerprints() -> set[str]:
        return {path.parent.name for path in tmp_path.glob("databases/tiny/*/manifest.json")}

    other_weights(tmp_path / "other")
    gptq = GPTQ(bits=[2, 3, 4], group_size=32)  # to a compressor without Hessians the text does not matter
    base = job(tmp_path, model, stages=("database",), compress=gptq)
    source = base.model
    (tmp_path / "text.txt").write_text("Another text, which goes on and on and says little. " * 100)
    others = [
        base,
        replace(base, model=replace(source, path=str(tmp_path / "other"))),
        replace(base, model=replace(source, dtype="bfloat16")),
        replace(base, data=replace(base.data, calibration_tokens=96)),
        replace(base, data=replace(base.data, source=str(tmp_path / "text.txt"))),
        replace(base, compress=replace(gptq, symmetric=True)),
    ]
    for number, other in enumerate(others, start=1):
        run_job(replace(other, folder=tmp_path / f"run{number}"))
        assert len(fingerprints()) == number


def test_the_same_settings_give_the_same_bytes(undisturbed, model, tmp_path):
    run_job(job(tmp_path, model))
    assert outcome(tmp_path) == outcome(undisturbed)


def test_the_number_of_threads_changes_fitness_only_by_rounding(undisturbed, model, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(3 if threads != 3 else 2)
    try:
        asked = [json.loads(line) for line in (undisturbed / "run" / "search.jsonl").read_text().splitlines()[1:]]
        run_job(replace(job(tmp_path, model), folder=tmp_path / "again"))
    finally:
        torch.set_num_threads(threads)
    again = [json.loads(line) for line in (tmp_path / "again" / "search.jsonl").read_text().splitlines()[1:]]
    same = [(a, b) for a, b in zip(asked, again, strict=False) if a["profiles"] == b["profiles"]]
    assert same and same[0][0] is asked[0]
    for first, second in same:
        assert second["answer"] == pytest.approx(first["answer"], rel=1e-4, abs=1e-6)


def test_a_failed_write_names_its_file(tmp_path):
    with pytest.raises(OSError, match="nowhere/file"):
        write_atomically(tmp_path / "nowhere" / "file", "x")


def test_a_finished_run_returns_the_profile_that_its_search_chose_without_evaluating(model, tmp_path, monkeypatch):
    """Nothing else would detect a wrong profile in a finished run."""
    searched = run_job(job(tmp_path, model))
    monkeypatch.setattr(Evaluator, "evaluate", None)
    assert run_job(job(tmp_path, model)) == searched
    last = json.loads((tmp_path / "run" / "search.jsonl").read_text().splitlines()[-1])
    fittest = last["profiles"][last["answer"].index(min(last["answer"]))]
    assert decode(fittest) == searched
    assert len(set(searched)) > 1  # not a uniform one
