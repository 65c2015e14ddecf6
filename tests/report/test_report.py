"""The report says what the files of a run say, whatever is in them or missing from them."""

import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import pytest
import yaml

from evopress.report import write_comparison, write_report
from evopress.report.__main__ import main
from evopress.report.collect import MAX_GAP, choices_of, find_runs, flattened, overfit_gap, read_run
from evopress.report.contrasts import Point, front
from evopress.report.figures import byte_parts, level_groups, level_histogram, profile_map
from evopress.report.page import differing_settings
from evopress.report.style import LIGHT, render
from evopress.space.budget import Budget
from evopress.space.profile_files import to_json
from evopress.space.units import Space
from tests.browser import CHROMIUM, browser
from tests.run_folders import KINDS, SETTINGS, make_run
from tests.spaces import bit_space, drop_space, sparse_space

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x.png>'\"&{{ 7*7 }}$\\frac{"


class Page(HTMLParser):
    """What a browser would see: text, the attributes of every tag, and the exact figures."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data):
        inside = self.tags[-1][0] if self.tags else ""
        if inside not in ("style", "script"):
            self.text += data
            if self.rows and self.rows[-1] and data.strip():
                self.rows[-1][-1] += data.strip()

    @property
    def numbers(self) -> list[float]:
        return [float(attributes["value"]) for tag, attributes in self.tags if tag == "data"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "finished")
    write_report(folder)
    return folder


def damaged_copy(folder: Path, name: str, content: str | None) -> Path:
    """A run where the file `name` holds `content`, or is missing."""
    make_run(folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    return folder


def test_the_table_holds_the_numbers_of_results_json(finished):
    results = json.loads((finished / "results.json").read_text())
    numbers = Page(finished / "report.html").numbers
    for name in ("dense", "uniform", "searched"):
        found = results[name]
        row = [
            found["size_bytes"],
            *(found[key][data] for data in ("pydoc", "wikitext2") for key in ("perplexity", "kl")),
        ]
        row += [found["bits_per_weight"], found["bits_per_weight_with_scales"]]
        assert any(numbers[start : start + len(row)] == row for start in range(len(numbers))), name
    for metric in ("acc", "acc_norm"):
        row = [results[name]["tasks"]["piqa"][metric] for name in ("dense", "uniform", "searched")]
        assert any(numbers[start : start + 3] == row for start in range(len(numbers))), metric


def test_rounded_figures_are_those_of_their_exact_values(finished):
    content = (finished / "report.html").read_text()
    shown = re.findall(r'<data value="([^"]+)">([^<]+)</data>', content)
    assert len(shown) >= 21
    for exact, rounded in shown:
        value = float(exact) / (1e6 if "." not in exact and float(exact) > 1000 else 1)
        assert float(rounded.replace(",", "")) == pytest.approx(value, abs=0.005)


def test_everything_a_reader_asks_for_is_there(finished):
    page = Page(finished / "report.html")
    for wanted in (
        "made-up, gptq, 3 bits",
        "token level, windows of 256, BOS off",
        "damping raised to 0.1",
        "the tokenizer has no BOS token",
        "python -m evopress.run model=tiny 'data.source=my text.txt'",
        "compress.bits",
        "[2, 3, 4, 5, 6]",
        "2.13.0",
        "KL by position was not measured",
        "3 min 0 s",
    ):
        assert wanted in page.text, wanted
    assert "INFO" not in page.text
    assert "has not finished" not in page.text


def test_nothing_is_fetched_and_every_image_has_a_description(finished):
    page = Page(finished / "report.html")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 5
    assert all(len(image["alt"]) > 20 for image in images)
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "srcset")]
    assert len(links) == 2 * len(images)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert "url(" not in (finished / "report.html").read_text()
    assert all(attributes["href"] == "data:," for _, attributes in page.tags if "href" in attributes)


def test_each_figure_is_a_png_file_too(finished):
    names = {path.name for path in (finished / "plots").iterdir()}
    assert names == {"fitness.png", "profile.png", "levels.png", "bytes.png", "seconds.png"}
    assert all((finished / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_the_same_run_gives_the_same_page(finished):
    before = (finished / "report.html").read_bytes()
    assert write_report(finished).read_bytes() == before


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium in the path")
def test_a_browser_without_network_shows_the_pages_whole_on_a_phone_and_on_a_desk(finished, tmp_path):
    runs = [finished, make_run(tmp_path / "other", seed=1)]
    pages = [finished / "report.html", write_comparison(runs, tmp_path / "comparison.html")]
    with browser() as chromium:
        for page in pages:
            for width in (390, 1400):
                seen = chromium.open(page, width)
                assert seen.messages == []
                assert all(url.startswith(("file:", "data:")) for url in seen.requests)
                assert len(seen.images) >= 3 and all(seen.images)
                assert seen.width == width, "the page is wider than the window"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium in the path")
def test_the_browser_test_notices_what_is_wrong_with_a_page(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="missing.png"><p style="width: 500px">wide</p><script>nothing.here</script>')
    with browser() as chromium:
        seen = chromium.open(page, 390)
    assert seen.images == [0]
    assert seen.width > 390
    assert any("missing.png" in message for message in seen.messages)
    assert any("nothing is not defined" in message for message in seen.messages)


def test_hostile_text_is_shown_and_not_run(tmp_path):
    folder = make_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    results |= {"model": HOSTILE, "compress": HOSTILE, "notes": [HOSTILE], "perplexity_convention": HOSTILE}
    for name in ("dense", "uniform", "searched"):
        for key in ("perplexity", "kl"):
            results[name][key] = {HOSTILE: 1.5}
        results[name]["tasks"] = {HOSTILE: {HOSTILE: 0.5}}
    (folder / "results.json").write_text(json.dumps(results))
    profile = json.loads((folder / "profile.json").read_text())
    for unit in profile["units"]:
        unit |= {"unit": f"{HOSTILE}.0.{HOSTILE}", "label": HOSTILE}
    profile["versions"] = {HOSTILE: HOSTILE}
    (folder / "profile.json").write_text(json.dumps(profile))
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump({HOSTILE: {HOSTILE: HOSTILE}}))
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump([f"a={HOSTILE}"]))
    (folder / "seconds.json").write_text(json.dumps({HOSTILE: 1.0}))
    (folder / "run.log").write_text(f"[now][here][WARNING] - {HOSTILE}\n")
    pages = [write_report(folder), write_comparison([folder, folder], tmp_path / "both.html")]
    for page in map(Page, pages):
        assert HOSTILE in page.text
        assert "script" not in {tag for tag, _ in page.tags}
        assert not any("evil" in attributes.get("src", "") for _, attributes in page.tags)
        assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)


@pytest.mark.parametrize("name", ["results.json", "profile.json", "seconds.json", ".hydra/config.yaml"])
@pytest.mark.parametrize("content", ["{", "[]", '{"units": [1], "dense": 3, "x": "y"}', "\x00", "{a: [}"])
def test_a_damaged_file_becomes_a_warning(name, content, tmp_path):
    run = read_run(damaged_copy(tmp_path / "run", name, content))
    valid_config = name == ".hydra/config.yaml" and content.startswith('{"units')
    assert any(Path(name).name in warning and "damaged" in warning for warning in run.warnings) != valid_config
    assert run.settings or name == ".hydra/config.yaml"
    assert run.choices or name == "profile.json"
    assert run.candidates or name == "results.json"


def test_a_report_with_everything_damaged_is_still_written(tmp_path):
    folder = make_run(tmp_path / "run")
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.write_bytes(b"\xff\xfe{")
    text = Page(write_report(folder)).text
    for name in ("results.json", "profile.json", "search.jsonl", "seconds.json", "config.yaml", "overrides.yaml"):
        assert f"{name} is damaged" in text
    assert "Nothing has been evaluated yet" in text


@pytest.mark.parametrize(
    ("missing", "to_do"),
    [
        (("results.json",), "evaluate"),
        (("results.json", "profile.json"), "search, evaluate"),
        (("results.json", "profile.json", "search.jsonl"), "database, search, evaluate"),
    ],
)
def test_a_run_that_was_stopped_says_what_is_left_and_how_to_go_on(missing, to_do, tmp_path):
    folder = make_run(tmp_path / "run")
    for name in missing:
        (folder / name).unlink()
    assert read_run(folder).warnings[0] == (
        f"This run has not finished: {to_do} to do. Go on with: python -m evopress.run resume={folder}"
    )


def test_a_report_is_written_of_a_run_that_has_only_begun(tmp_path):
    folder = make_run(tmp_path / "run")
    for name in ("results.json", "profile.json", "search.jsonl", "seconds.json", "run.log"):
        (folder / name).unlink()
    page = Page(write_report(folder))
    assert "This run has not finished" in page.text
    assert "damaged" not in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_a_report_written_again_drops_plots_that_no_longer_hold(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "profile.json").unlink()
    (folder / "plots").mkdir()
    (folder / "plots/profile.png").touch()
    write_report(folder)
    assert [path.name for path in sorted((folder / "plots").iterdir())] == ["fitness.png", "seconds.png"]


def test_a_torn_last_answer_costs_only_itself(tmp_path):
    folder = make_run(tmp_path / "run")
    whole = read_run(folder)
    lines = (folder / "search.jsonl").read_text().splitlines()
    (folder / "search.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    torn = read_run(folder)
    assert torn.answers == whole.answers[:-1]
    assert not torn.damages


def test_what_follows_a_damaged_answer_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    whole = read_run(folder)
    lines = (folder / "search.jsonl").read_text().splitlines()
    (folder / "search.jsonl").write_text("\n".join([*lines[:2], lines[2][:40], *lines[3:], ""]))
    run = read_run(folder)
    assert run.answers == whole.answers[:1]
    assert run.damages == ("search.jsonl is damaged from line 3 on; only what is before it is shown",)


def test_tokens_spent_add_up_over_all_answers_also_those_without_fitness(tmp_path):
    folder = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    table = {"ask": "cosine", "tokens": 64, "arguments": [], "answer": [[1.0]], "token_equivalents": 64.0}
    lines.insert(2, table)
    (folder / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = read_run(folder).answers
    assert len(answers) == len(lines) - 2
    assert answers[-1].spent == sum(line.get("token_equivalents", 0) for line in lines)


@pytest.mark.parametrize(
    ("kl", "warned"), [(0.05 * (1 + MAX_GAP) - 0.001, False), (0.05 * (1 + MAX_GAP) + 0.001, True)]
)
def test_a_large_gap_between_search_and_test_is_a_warning(kl, warned, tmp_path):
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
    assert any("over-fitted" in warning for warning in run.warnings) == warned


def test_a_profile_worse_than_uniform_is_a_warning(tmp_path):
    folder = make_run(tmp_path / "run")
    assert not any("worse than" in warning for warning in read_run(folder).warnings)
    results = json.loads((folder / "results.json").read_text())
    results["searched"]["kl"]["wikitext2"] = 9.0
    (folder / "results.json").write_text(json.dumps(results))
    assert any("On wikitext2 the searched profile is worse" in warning for warning in read_run(folder).warnings)


def test_parts_of_the_file_add_up_to_its_size(finished):
    run = read_run(finished)
    for name in ("dense", "searched"):
        assert sum(size for row, _, size in byte_parts(run) if row == name) == run.candidates[name].size_bytes


def test_units_are_placed_by_block_and_kind(finished):
    run = read_run(finished)
    assert run.kinds == ["q", "k", "v", "o", "gate", "up", "down"]
    assert list(run.cells) == [(block, kind) for block in range(2) for kind in run.kinds]
    assert [choice.level for choice in run.cells.values()] == [choice.level for choice in run.choices]
    assert len(run.choices) == 2 * len(KINDS)


@pytest.mark.parametrize(
    "space", [bit_space([8, 8, 16]), drop_space(4), sparse_space(5)], ids=["bits", "drop", "sparse"]
)
def test_profiles_of_every_method_are_read_and_drawn(space: Space, tmp_path):
    rng = Random(0)
    profile = tuple(rng.randrange(len(unit.levels)) for unit in space.units)
    (tmp_path / "profile.json").write_text(to_json(space, profile, settings=SETTINGS, achieved=3.0))
    run = read_run(tmp_path)
    assert [choice.level for choice in run.choices] == list(profile)
    costs = [space.level(index, profile).cost / unit.num_weights for index, unit in enumerate(space.units)]
    by_cost = sorted(range(len(space)), key=lambda index: costs[index])
    kept = [run.choices[index].kept for index in by_cost]
    assert kept == sorted(kept)
    assert sum(len(group.members) for group in level_groups(run.choices)) == len(space)
    drawn = [draw for draw in (level_histogram, profile_map) if render(partial(draw, run), LIGHT, ("png",))]
    assert drawn == [level_histogram] + [profile_map] * bool(run.cells)


def test_many_levels_are_put_together_by_tenths():
    space = sparse_space(20, step=1)
    profile = tuple(index for index in range(len(space)))
    groups = level_groups(choices_of(json.loads(to_json(space, profile))))
    assert [group.label for group in groups] == ["0.3 to 0.4", "0.4 to 0.5", "0.5 to 0.6", "0.6 to 0.7"]
    assert [len(group.members) for group in groups] == [10, 10, 10, 10]


def test_kl_by_position_is_drawn_where_it_was_measured(tmp_path):
    folder = make_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    results["searched"]["kl_by_position"] = {"pydoc": [0.5, 0.25, 0.125]}
    (folder / "results.json").write_text(json.dumps(results))
    for name in ("profile.json", "search.jsonl", "seconds.json"):
        (folder / name).unlink()
    assert "was not measured" not in Page(write_report(folder)).text
    assert (folder / "plots/position.png").exists()


def test_exported_checkpoints_are_listed(tmp_path):
    folder = make_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    found = {"folder": "here/hf", "written_bytes": 1234567, "kl": 1.5e-5, "same_top_token": 0.998, "files": {}}
    results["exports"] = {"hf": found}
    (folder / "results.json").write_text(json.dumps(results))
    for name in ("profile.json", "search.jsonl", "seconds.json"):
        (folder / name).unlink()
    page = Page(write_report(folder))
    assert ["hf", "1.23", "1.5e-05", "0.9980", "here/hf"] in page.rows
    assert {1234567, 1.5e-5, 0.998} <= set(page.numbers)


def test_flattening_keeps_every_value():
    tree = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": None, "f": "x", "g": {}}
    assert dict(flattened(tree)) == {"a.b": "1", "a.c": '[1, {"d": 2}]', "e": "null", "f": "x", "g": "{}"}


def test_the_front_is_what_no_other_point_beats():
    rng = Random(0)
    points = [Point("m", "searched", rng.randint(1, 20), rng.randint(1, 20)) for _ in range(60)]

    def beaten(point: Point) -> bool:
        return any(
            other.size <= point.size and other.kl <= point.kl and (other.size, other.kl) != (point.size, point.kl)
            for other in points
        )

    assert {(p.size, p.kl) for p in front(points)} == {(p.size, p.kl) for p in points if not beaten(p)}


def test_a_comparison_has_a_row_per_run_and_links_to_their_reports(tmp_path):
    folders = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    (folders[0] / "report.html").touch()
    page = Page(write_comparison(folders, tmp_path / "sweep.html"))
    assert [attributes["href"] for tag, attributes in page.tags if tag == "a"] == ["one/report.html"]
    for folder in folders:
        found = json.loads((folder / "results.json").read_text())
        assert found["searched"]["kl"]["pydoc"] in page.numbers
        assert found["searched"]["size_bytes"] in page.numbers
    assert (tmp_path / "sweep-plots/pareto-0.png").exists()
    assert (tmp_path / "sweep-plots/difference-1.png").exists()
    choices = [read_run(folder).choices for folder in folders]
    different = sum(ours.level != theirs.level for ours, theirs in zip(*choices, strict=True))
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert any(f"{different} units differ" in alt for alt in alts)


def test_only_settings_that_differ_are_compared(tmp_path):
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two")]
    config = yaml.safe_load((folders[1] / ".hydra/config.yaml").read_text())
    config["budget"]["target"] = 4
    (folders[1] / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    assert differing_settings([read_run(folder) for folder in folders]) == [("budget.target", ["3", "4"])]


def test_the_command_reports_every_run_below_a_folder(tmp_path, capsys):
    folders = [make_run(tmp_path / "sweep" / name) for name in ("0", "1")]
    for folder in folders:
        (folder / "profile.json").unlink()
    assert find_runs(tmp_path) == folders
    assert main([str(tmp_path / "sweep")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written == [folder / "report.html" for folder in folders] + [tmp_path / "sweep/comparison.html"]
    assert all(path.is_file() for path in written)


def test_runs_from_several_folders_are_compared_in_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "seconds.json").write_text("{}")
    assert main(["one", "two"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "comparison.html"
    assert (tmp_path / "comparison.html").is_file()


def test_exported_checkpoints_inside_a_run_are_not_runs(tmp_path):
    folder = make_run(tmp_path / "run")
    for checkpoint in (folder / "checkpoint/hf", tmp_path / "hf"):
        checkpoint.mkdir(parents=True)
        (checkpoint / "profile.json").write_bytes((folder / "profile.json").read_bytes())
        (checkpoint / "config.json").write_text("{}")
    (folder / "checkpoint/results.json").touch()
    assert find_runs(tmp_path) == [folder]


def test_the_command_refuses_a_folder_without_runs(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(metric="bits", target=2.5), "2.5 bits"),
        (Budget(metric="sparsity", target=0.6), "60 % sparse"),
        (Budget(metric="drop", target=0.125), "12.5 % dropped"),
        (Budget(metric="size", target="80MB"), "80MB"),
    ],
)
def test_budgets_read_as_people_say_them(budget, words, tmp_path):
    settings = {"budget": {"metric": budget.metric, "target": budget.target}}
    (tmp_path / "search.jsonl").write_text(json.dumps({"header": settings}) + "\n")
    assert read_run(tmp_path).budget == words
