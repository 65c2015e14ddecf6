"""Reading a run directory: damaged and missing files, warnings, search log and profile."""

import json
from pathlib import Path

import pytest

from evopress.report.parsing import flattened
from evopress.report.read_run import read_run
from evopress.report.run_warnings import MAX_GAP, overfit_gap
from evopress.space.budget import Budget
from tests.run_folders import make_run


def damaged_copy(folder: Path, name: str, content: str | None) -> Path:
    """A run where the file `name` holds `content`, or is missing."""
    make_run(folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("name", ["results.json", "profile.json", "seconds.json", ".hydra/config.yaml"])
@pytest.mark.parametrize("content", ["{", "[]", '{"units": [1], "dense": 3, "x": "y"}', "\x00", "{a: [}"])
def test_a_damaged_file_becomes_a_warning(name, content, tmp_path):
    run = read_run(damaged_copy(tmp_path / "run", name, content))
    valid_config = name == ".hydra/config.yaml" and content.startswith('{"units')
    assert any(Path(name).name in warning and "damaged" in warning for warning in run.warnings) != valid_config
    assert run.settings or name == ".hydra/config.yaml"
    assert run.choices or name == "profile.json"
    assert run.candidates or name == "results.json"


@pytest.mark.parametrize(
    ("missing", "to_do"),
    [
        (("results.json",), "evaluate"),
        (("results.json", "profile.json"), "search, evaluate"),
        (("results.json", "profile.json", "search.jsonl"), "database, search, evaluate"),
    ],
)
def test_an_unfinished_run_names_the_missing_stages_and_the_resume_command(missing, to_do, tmp_path):
    folder = make_run(tmp_path / "run")
    for name in missing:
        (folder / name).unlink()
    assert read_run(folder).warnings[0] == (
        f"This run has not finished: {to_do} to do. Continue with: python -m evopress.run resume={folder}"
    )


def test_an_incomplete_last_line_of_the_search_log_is_ignored(tmp_path):
    folder = make_run(tmp_path / "run")
    complete = read_run(folder)
    lines = (folder / "search.jsonl").read_text().splitlines()
    (folder / "search.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    incomplete = read_run(folder)
    assert incomplete.batches == complete.batches[:-1]
    assert not incomplete.defects


def test_the_search_log_is_read_up_to_the_first_damaged_line(tmp_path):
    folder = make_run(tmp_path / "run")
    complete = read_run(folder)
    lines = (folder / "search.jsonl").read_text().splitlines()
    (folder / "search.jsonl").write_text("\n".join([*lines[:2], lines[2][:40], *lines[3:], ""]))
    run = read_run(folder)
    assert run.batches == complete.batches[:1]
    assert run.defects == ("search.jsonl is damaged from line 3 on; only the lines before it are used",)


def test_tokens_spent_include_questions_without_fitness(tmp_path):
    folder = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    table = {"ask": "cosine", "tokens": 64, "arguments": [], "answer": [[1.0]], "token_equivalents": 64.0}
    lines.insert(2, table)
    (folder / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batches = read_run(folder).batches
    assert len(batches) == len(lines) - 2
    assert batches[-1].tokens_spent == sum(line.get("token_equivalents", 0) for line in lines)


@pytest.mark.parametrize(
    ("kl", "warned"), [(0.05 * (1 + MAX_GAP) - 0.001, False), (0.05 * (1 + MAX_GAP) + 0.001, True)]
)
def test_a_large_gap_between_search_and_test_kl_is_a_warning(kl, warned, tmp_path):
    folder = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    lines[-1]["answer"] = [0.05] * len(lines[-1]["answer"])
    (folder / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = json.loads((folder / "results.json").read_text())
    results["searched"]["kl"] = {"pydoc": kl}
    (folder / "results.json").write_text(json.dumps(results))
    run = read_run(folder)
    assert run.search_fitness == 0.05
    assert overfit_gap(run) == (0.05, kl, kl / 0.05 - 1)
    assert any("overfitted" in warning for warning in run.warnings) == warned


def test_a_profile_worse_than_uniform_is_a_warning(tmp_path):
    folder = make_run(tmp_path / "run")
    assert not any("worse than" in warning for warning in read_run(folder).warnings)
    results = json.loads((folder / "results.json").read_text())
    results["searched"]["kl"]["wikitext2"] = 9.0
    (folder / "results.json").write_text(json.dumps(results))
    assert any("On wikitext2 the searched profile is worse" in warning for warning in read_run(folder).warnings)


def test_flattening_keeps_every_value():
    tree = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": None, "f": "x", "g": {}}
    assert dict(flattened(tree)) == {"a.b": "1", "a.c": '[1, {"d": 2}]', "e": "null", "f": "x", "g": "{}"}


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(metric="bits", target=2.5), "2.5 bits"),
        (Budget(metric="sparsity", target=0.6), "60 % sparse"),
        (Budget(metric="drop", target=0.125), "12.5 % dropped"),
        (Budget(metric="size", target="80MB"), "80MB"),
    ],
)
def test_budgets_are_worded_as_people_say_them(budget, words, tmp_path):
    settings = {"budget": {"metric": budget.metric, "target": budget.target}}
    (tmp_path / "search.jsonl").write_text(json.dumps({"header": settings}) + "\n")
    assert read_run(tmp_path).budget == words
