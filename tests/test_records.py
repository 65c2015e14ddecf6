"""Every figure in a table that has a record equals the record, to the digits that are printed."""

import re
from statistics import fmean

import pytest

from experiments.compare import collect as compare
from experiments.k_types import measure as k_types
from experiments.known import collect as known
from experiments.levels import collect as levels
from experiments.memory_budget import collect as memory_budget
from experiments.search import front, show
from experiments.tuning import collect as tuning
from tests.documents import README, listings, page, study, table, tables
from tests.records import (
    ALGORITHM_1,
    EXPERIMENTS,
    NUMBER,
    assert_mean_and_spread,
    assert_printed,
    ended,
    groups_of,
    is_rounded,
    mean_of,
    number,
    record,
)


def test_the_readme_shows_the_recorded_output_of_the_demo():
    (shown,) = (text for text in listings(README.read_text(), "text") if "ppl" in text)
    assert shown.splitlines() == record("demo/results.json")["table"]


def test_the_dates_of_the_demo_are_those_of_its_record():
    demo, text = record("demo/results.json"), study("demo").read_text()
    assert demo["date"] in text and demo["date_of_picture"] in text


@pytest.mark.parametrize("row", table(README, "", "uniform", "Algorithm 1 of the paper"), ids=lambda row: row[0])
def test_the_gains_in_the_readme_are_those_of_the_search_study(row):
    task, uniform, algorithm_1, short, default = row
    uniform_kl = record("search/uniform.json")["kl"]
    assert_printed(uniform, *([uniform_kl[task]] if task in uniform_kl else []))
    paper = ended(task, ALGORITHM_1)
    limit = mean_of(paper, "token_equivalents")
    guided = [runs for runs in groups_of(task, "guided") if mean_of(runs, "token_equivalents") <= limit]
    for cell, runs in ((algorithm_1, paper), (short, guided[0]), (default, guided[-1])):
        assert len(runs) == 3
        assert_printed(cell, mean_of(runs, "kl_unseen"), mean_of(runs, "token_equivalents"))


def test_the_table_of_the_search_study_is_that_of_its_records():
    assert show.table(record("search/results.json")) in study("search").read_text()


def test_the_table_of_the_study_of_levels_is_that_of_its_record():
    assert levels.table(record("levels/results.json")["figures"]) in study("levels").read_text()


def test_the_tables_and_claims_of_the_study_of_memory_budgets_are_those_of_its_record():
    results, text = record("memory_budget/results.json"), study("memory_budget").read_text()
    assert memory_budget.table_of_files(results["files"]) in text
    assert memory_budget.table_of_searches(results["searches"]) in text or not results["searches"]
    for file in results["files"]:
        for part in ("weights", "cache"):
            assert abs(file["reported"][part] / file["foretold"][part] - 1) < 0.002
    refused, accepted = results["vllm"]
    assert f"{refused['cache_bytes']:,} bytes" in text.replace("\n", " ")
    assert refused["tokens"] is None and "maximum model length is 1920" in refused["error"]
    assert accepted["tokens"] == accepted["context"] == 2048


def test_the_table_of_the_study_of_k_types_is_that_of_its_record():
    assert k_types.table(record("k_types/results.json")["results"]) in study("k_types").read_text()


def test_the_table_of_the_study_of_tuning_is_that_of_its_record():
    text = study("tuning").read_text()
    assert tuning.table(record("tuning/results.json")["rows"]) in text
    assert tuning.table_of_kinds(record("tuning/kinds.json")["rows"]) in text
    assert tuning.table_of_recipes(record("tuning/rounding_steps.json")["losses"]) in text


def test_the_table_of_six_budgets_is_that_of_its_records():
    assert front.table(record("search/front.json")) in study("search").read_text()


def test_the_shares_of_six_budgets_on_the_options_page_are_those_of_the_records():
    fronts = record("search/front.json")
    together, apart = front.total_tokens(fronts)
    alone = front.separate_searches(front.SEARCHES["separate searches"])
    excess = [
        fmean(point["kl_searched"] for point in points) / fmean(run["kl"] for run in alone[target]) - 1
        for target, points in front.by_budget(fronts).items()
    ]
    below, above = re.search(r"between (\d+) % below and ([\d.]+) % above", page("options").read_text()).groups()
    assert is_rounded(below, -100 * min(excess)) and is_rounded(above, 100 * max(excess))
    assert 0.45 < together / apart < 0.5  # "half the tokens"


@pytest.mark.parametrize("row", table(study("search"), "database", "uniform"), ids=lambda row: row[0])
def test_the_four_databases_of_the_search_study_are_those_of_its_records(row):
    if row[0] == "mean":
        others = table(study("search"), "database", "uniform")[:-1]
        for column in (1, 2, 3, 4):
            assert_printed(row[column], fmean(float(other[column].split()[0]) for other in others))
        return
    batch = number(re.search(NUMBER, row[0])[0])
    task = "3 bit" if batch == 4096 else f"3 bit, batches of {batch:.0f}"
    assert_printed(row[1], record("search/uniform.json")["kl"][task])
    runs = [run for run in record("search/results.json") if run["task"] == task]
    early = [
        run
        for run in runs
        if run["stands_at"] != "end"
        and [word for word in run["overrides"] if word.startswith("search")] == ["search=guided"]
        and run["token_equivalents"] <= 60_000
    ]
    columns = [early, ended(task, ["search=guided"]), ended(task, front.SEARCHES["with generations"])]
    for cell, members in zip(row[2:5], columns, strict=True):
        assert_mean_and_spread(cell, [run["kl_unseen"] for run in members])
    if row[5]:
        assert_mean_and_spread(row[5], [run["kl_unseen"] for run in ended(task, ALGORITHM_1)])


@pytest.mark.parametrize("row", table(page("larger_models"), "stage", "tokens, 7B"), ids=lambda row: row[0])
def test_the_estimates_for_large_models_are_those_of_the_record(row):
    stage = {"database, 2 to 6 bits": "database", "evaluation": "evaluate"}.get(row[0], row[0].strip("`"))
    of_model = {entry["model"]: entry for entry in record("planning/results.json")["stages"] if entry["stage"] == stage}
    small, large = of_model["Mistral-7B"], of_model["Llama-3-70B"]
    assert_printed(row[1], small["tokens"] / 1e6)
    cells = {"hours": row[2:4], "memory_bytes": row[4:6], "memory_bytes_with_offload": row[6:8]}
    for key, (small_cell, large_cell) in cells.items():
        unit = 1 if key == "hours" else 1e9
        assert_printed(small_cell, small[key] / unit)
        assert_printed(large_cell, large[key] / unit)


def test_the_estimates_in_the_text_are_those_of_the_record():
    models, text = record("planning/results.json")["models"], page("larger_models").read_text()
    sentences = {"Mistral-7B": "18 GB for all levels, and 53 GB", "Llama-3-70B": "For 70B: 178 GB and 121 GB"}
    for name, disk in sentences.items():
        assert disk in " ".join(text.split())
        numbers = re.findall(r"(\d+) GB", disk)
        sizes = (models[name]["database_bytes"] / 1e9, models[name]["states_bytes"] / 1e9)
        assert all(map(is_rounded, numbers, sizes))


def test_what_was_planned_and_measured_for_the_small_model_is_that_of_the_record():
    checked = record("planning/smollm2.json")
    paragraph = re.search(r"How good are such estimates\?.*?\n\n", page("larger_models").read_text(), re.DOTALL)[0]
    pairs = [pair for quantity in ("seconds", "memory_gb", "megabytes") for pair in checked[quantity].values()]
    assert_printed(paragraph.partition(":")[2], *(pair[key] for pair in pairs for key in ("planned", "measured")))


@pytest.mark.parametrize("row", table(page("paper"), "", "perplexity", "KL"), ids=lambda row: row[0])
def test_known_figures_on_the_papers_page_are_those_of_the_record(row):
    results = record("known/results.json")
    name = "dense" if row[0] == "dense" else f"gptq-{row[0].split()[0]}"
    (measured,) = (run["measured"][name] for run in results["runs"] if run["dtype"] == "bfloat16")
    for perplexity, kl, figures in ((row[1], row[2], measured), (row[3], row[4], results["known"][name])):
        assert_printed(perplexity, figures["perplexity"])
        assert_printed(kl, figures["kl"])


def test_the_table_of_known_figures_is_that_of_its_record():
    assert known.table(record("known/results.json")) in study("known").read_text()


def test_the_table_of_the_comparison_is_that_of_its_records():
    rows = record("compare/results.json")
    assert rows
    assert compare.table(rows) in study("compare").read_text()


@pytest.mark.parametrize("row", table(study("joint"), "space", "search"), ids=lambda row: " ".join(row[:2]))
def test_the_table_of_joint_spaces_is_that_of_its_records(row):
    space, search, tokens, dropped, kl, perplexity = row
    if not search:
        assert_printed(kl, record("search/uniform.json")["kl"]["2.5 bit"])
        return
    runs = [run for run in record("joint/results.json") if (run["space"], run["search"]) == (space, search)]
    assert_printed(tokens, mean_of(runs, "token_equivalents"))
    assert_printed(dropped, *(len(run["dropped"]) for run in runs))
    assert_mean_and_spread(kl, [run["kl_unseen"] for run in runs])
    assert_printed(perplexity, mean_of(runs, "perplexity_unseen"))


def test_the_joint_figures_on_the_options_page_are_those_of_the_records():
    text = " ".join(page("options").read_text().split())
    sentence = re.search(r"reaches a KL of ([\d.]+) .*? widths alone reach ([\d.]+)", text)
    for printed, space in zip(sentence.groups(), ("joint", "widths"), strict=True):
        runs = [run for run in record("joint/results.json") if (run["space"], run["search"]) == (space, "guided")]
        assert abs(float(printed) - mean_of(runs, "kl_unseen")) < 0.0051


def test_the_tables_of_additivity_are_those_of_its_record():
    results = record("additivity/results.json")
    for row, figures in zip(table(study("additivity"), "share dropped"), results["rank_correlation"], strict=True):
        assert_printed(row[0], 100 * figures["share"])
        for cell, key in zip(row[1:], ("spearman", "best_by_sum", "best"), strict=True):
            assert_printed(cell, figures[key])
    rows = table(study("additivity"), "dropped", "and also")
    for row, figures in zip(rows, results["better_supersets"], strict=True):
        block, part = re.search(r"layers\.(\d+)\.(\w+)", figures["added"]).groups()
        assert row[1] == f"{'MLP' if part == 'mlp' else part} of block {block}"
        for cell, key in zip((row[0], *row[2:]), ("dropped", "kl_unseen", "kl_unseen_with_it"), strict=True):
            assert_printed(cell, figures[key])


def test_the_table_of_convergence_is_that_of_its_record():
    records = record("convergence/results.json")
    for row in table(study("convergence"), "n", "k"):
        n, k, switches = int(row[0]), int(row[1]), int(row[2][-1])
        ratios = [r["ratio"] for r in records if (r["n"], r["k"], r["max_switches"]) == (n, k, switches)]
        for cell, ratio in zip(row[3:], ratios, strict=True):
            assert_printed(cell, ratio)


def test_the_phases_of_the_speed_study_are_those_of_its_record():
    phases = {phase["name"]: phase for phase in record("speed/results.json")["phases"]}
    rows = {row[0]: row for row in table(study("speed"), "phase", "time")}
    assert rows.keys() == phases.keys()
    for name, row in rows.items():
        phase = phases[name]
        values = (phase["seconds"], phase["work"], phase["rate"], 100 * phase["share_of_ceiling"])
        for cell, value in zip(row[1:], values, strict=True):
            (printed,) = re.findall(r"[\d,.]+", cell)
            assert number(printed) == pytest.approx(value, rel=0.005, abs=0.5 if "%" in cell else 0), name


def test_the_ratios_of_the_speed_study_are_those_of_its_record():
    ratios = record("speed/results.json")["ratios"]
    rows = table(study("speed"), "", "plain", "here")
    for row, (name, measured) in zip(rows, ratios.items(), strict=True):
        assert row[0].split(",")[0].split(" of ")[0].split(":")[0] in name or name.startswith(row[0].split(",")[0])
        for cell, key in zip(row[1:], ("plain_seconds", "seconds", "ratio"), strict=True):
            assert_printed(cell, measured[key])


def test_the_table_of_gguf_files_is_that_of_its_record():
    rows = table(study("gguf"), "file", "bytes", "KL from dense")
    for row, figures in zip(rows, record("gguf/results.json")["files"], strict=True):
        assert_printed(row[1], figures["bytes"])
        assert_printed(row[2], figures["kl"])
        assert_printed(row[3], figures["perplexity"])
        difference = [figures[key] for key in ("kl_minus_llama_cpp", "interval") if key in figures]
        assert_printed(row[4], *difference)


def test_the_table_of_gguf_mixes_is_that_of_its_record():
    rows = table(study("gguf"), "file", "bytes", "KL, second halves")
    for row, figures in zip(rows, record("gguf/mixes.json")["files"], strict=True):
        assert row[0].strip("*") == figures["file"]
        for cell, key in zip(row[1:], ("bytes", "kl_second_halves", "kl", "perplexity"), strict=True):
            assert_printed(cell, figures[key])


def test_the_table_of_memory_is_that_of_its_record():
    for row, figures in zip(table(study("memory"), "stage"), record("memory/results.json")["stages"], strict=True):
        assert row[0] == figures["name"]
        assert_printed(row[1], figures["seconds"])
        assert_printed(row[2], figures["peak_gb"])


def test_the_table_of_tying_is_that_of_its_record():
    results = record("tying/results.json")
    uniform, *searched = table(study("tying"), "", "size")
    assert_printed(uniform[-1], results["kl_uniform"])
    for row, kls in zip(searched, results["kl_searched"].values(), strict=True):
        for cell, kl in zip(row[2:], (*kls, fmean(kls)), strict=True):
            assert_printed(cell, kl)


def test_the_table_of_the_authors_scripts_is_that_of_its_record():
    results = record("authors/results.json")
    *databases, search = table(study("authors"), "", "seconds")
    for row, figures in zip(databases, results["databases"], strict=True):
        assert_printed(row[1], figures["seconds"])
        assert_printed(row[2], figures["megabytes"])
    assert_printed(search[1], results["search"]["seconds"])
    assert_printed(search[2], results["search"]["teacher_logits_megabytes"])


def test_sizes_of_databases_are_those_of_the_records():
    ours = record("speed/results.json")["databases"]["GPTQ of 5 widths"]["bytes"] / 1e6
    theirs = record("authors/results.json")["databases"][0]["megabytes"]
    text = " ".join(page("other_tools").read_text().split())
    printed = re.search(r"take ([\d ]+) MB, and (\d+) MB here", text).groups()
    assert is_rounded(printed[0], theirs) and is_rounded(printed[1], ours)


def test_the_count_of_survived_faults_is_that_of_its_record():
    counts = record("faults/results.json")
    kinds = [kind for kind in counts if kind not in ("date", "lost")]
    for path, pattern in ((page("reliability"), r"The last count.*?lost\."), (study("faults"), r"The count of.*?lost")):
        sentence = re.search(pattern, path.read_text(), re.DOTALL)[0]
        assert_printed(re.sub(r"\d{4}-\d\d-\d\d", "", sentence), *(counts[kind] for kind in kinds))


def test_every_study_has_a_record_or_is_known_to_have_none():
    without = {"python_use"}  # its record is the executed notebook
    folders = {path.parent.name for path in EXPERIMENTS.glob("*/README.md")}
    assert {path.parent.name for path in EXPERIMENTS.glob("*/results.json")} == folders - without
    assert all(f"]({name}/README.md)" in (EXPERIMENTS / "README.md").read_text() for name in folders)


def test_tables_are_read_as_they_are_printed():
    (rows, *_) = tables(study("tying"))
    assert rows[0][:2] == ["", "size"]
    assert_printed("−0.249 ± 0.009", -0.249, 0.009)
    assert_printed("270 885 696", 270885696)
    assert_printed("0.816 for 271,030", 0.8164, 271030.2)
    with pytest.raises(AssertionError, match="where the record has"):
        assert_printed("0.816", 0.8175)


def test_the_tables_of_number_formats_are_those_of_their_record():
    recorded = record("number_formats/results.json")
    settings = ("gptq", "gptq, no order", "nearest, four over six", "gptq, four over six")
    for row in table(study("number_formats"), "level"):
        errors = recorded["relative_errors"][row[0].strip("`")]
        for cell, setting in zip(row[1:], settings, strict=True):
            assert bool(cell) == (setting in errors)
            if cell:
                assert_printed(cell, errors[setting]["mean"], errors[setting]["worst"])
    for name, kl, perplexity in table(study("number_formats"), "rounding", "KL"):
        assert_printed(kl, recorded["nvfp4"][name]["kl"])
        assert_printed(perplexity, recorded["nvfp4"][name]["perplexity"])
    for name, size, kl, perplexity in table(study("number_formats"), "profile", "MB"):
        assert_printed(size, recorded["mix"][name]["size_bytes"] / 1e6)
        assert_printed(kl, recorded["mix"][name]["kl"])
        assert_printed(perplexity, recorded["mix"][name]["perplexity"])
