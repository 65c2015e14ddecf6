"""`report.html` shows what the files of a run say, whatever they contain or lack."""

import json
import re

import matplotlib
import pytest
import yaml

from evopress.report import write_comparison, write_report
from evopress.report.kl_figures import kl_by_position
from evopress.report.read_run import read_run
from evopress.report.style import LIGHT
from tests.report.html_page import Page
from tests.run_folders import make_run

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x.png>'\"&{{ 7*7 }}$\\frac{"


def test_the_table_shows_the_numbers_in_results_json(finished_run):
    results = json.loads((finished_run / "results.json").read_text())
    numbers = Page(finished_run / "report.html").numbers
    for name in ("dense", "uniform", "searched"):
        scores = results[name]
        row = [
            scores["size_bytes"],
            *(scores[key][data] for data in ("pydoc", "wikitext2") for key in ("perplexity", "kl")),
        ]
        row += [scores["bits_per_weight"], scores["bits_per_weight_with_scales"]]
        assert any(numbers[start : start + len(row)] == row for start in range(len(numbers))), name
    for metric in ("acc,none", "acc_norm,none"):
        row = [results[name]["tasks"]["piqa"][metric] for name in ("dense", "uniform", "searched")]
        assert any(numbers[start : start + 3] == row for start in range(len(numbers))), metric


def test_a_task_has_a_row_for_each_metric_with_its_standard_error(finished_run):
    content = (finished_run / "report.html").read_text()
    assert re.findall(r'<th scope="row">(piqa[^<]*)</th>', content) == ["piqa acc", "piqa acc_norm"]
    assert content.count("</data> ± 0.0123</td>") == 3


def test_shown_figures_are_the_exact_values_rounded(finished_run):
    content = (finished_run / "report.html").read_text()
    shown = re.findall(r'<data value="([^"]+)">([^<]+)</data>', content)
    assert shown
    for exact, rounded in shown:
        value = float(exact) / (1e6 if "." not in exact and float(exact) > 1000 else 1)
        assert float(rounded.replace(",", "")) == pytest.approx(value, abs=0.005)


def test_the_page_shows_model_conventions_warnings_command_settings_and_times(finished_run):
    page = Page(finished_run / "report.html")
    for expected in (
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
        assert expected in page.text, expected
    assert "INFO" not in page.text
    assert "has not finished" not in page.text


def test_the_page_loads_nothing_and_describes_every_image(finished_run):
    page = Page(finished_run / "report.html")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 5
    assert all(len(image["alt"]) > 20 for image in images)
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "srcset")]
    assert len(links) == 2 * len(images)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert "url(" not in (finished_run / "report.html").read_text()
    assert all(attributes["href"] == "data:," for _, attributes in page.tags if "href" in attributes)


def test_every_plot_is_also_a_png_file(finished_run):
    names = {path.name for path in (finished_run / "plots").iterdir()}
    assert names == {"fitness.png", "profile.png", "levels.png", "bytes.png", "seconds.png"}
    assert all((finished_run / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in names)


@pytest.mark.slow
def test_writing_the_report_twice_gives_the_same_bytes(finished_run):
    before = (finished_run / "report.html").read_bytes()
    assert write_report(finished_run).read_bytes() == before


@pytest.mark.slow
def test_hostile_text_is_shown_but_not_executed(tmp_path):
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


def test_a_report_is_written_even_if_every_file_is_damaged(tmp_path):
    folder = make_run(tmp_path / "run")
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.write_bytes(b"\xff\xfe{")
    text = Page(write_report(folder)).text
    for name in ("results.json", "profile.json", "search.jsonl", "seconds.json", "config.yaml", "overrides.yaml"):
        assert f"{name} is damaged" in text
    assert "Nothing has been evaluated yet" in text


def test_a_report_is_written_for_a_run_that_has_only_started(tmp_path):
    folder = make_run(tmp_path / "run")
    for name in ("results.json", "profile.json", "search.jsonl", "seconds.json", "run.log"):
        (folder / name).unlink()
    page = Page(write_report(folder))
    assert "This run has not finished" in page.text
    assert "damaged" not in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_rewriting_a_report_deletes_outdated_plots(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "profile.json").unlink()
    (folder / "plots").mkdir()
    (folder / "plots/profile.png").touch()
    write_report(folder)
    assert [path.name for path in sorted((folder / "plots").iterdir())] == ["fitness.png", "seconds.png"]


def test_kl_by_position_is_drawn_if_it_was_measured(tmp_path):
    folder = make_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    results["searched"]["kl_by_position"] = {"pydoc": [0.5, 0.25, 0.125]}
    (folder / "results.json").write_text(json.dumps(results))
    for name in ("profile.json", "search.jsonl", "seconds.json"):
        (folder / name).unlink()
    assert "was not measured" not in Page(write_report(folder)).text
    assert (folder / "plots/position.png").exists()


@pytest.mark.slow
def test_every_measured_candidate_has_its_curve_of_kl_by_position(tmp_path):
    folder = make_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    results |= {"tuned": results["searched"], "uniform_tuned": results["uniform"]}
    for name in ("uniform", "searched", "tuned", "uniform_tuned"):
        results[name] = {**results[name], "kl_by_position": {"pydoc": [0.1, 0.2, 0.3]}}
    (folder / "results.json").write_text(json.dumps(results))
    with matplotlib.rc_context(LIGHT.settings()):
        figure = kl_by_position(read_run(folder), LIGHT)
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == ["uniform", "searched", "tuned", "uniform_tuned"]
    means = [line for line in figure.axes[0].lines if line.get_linewidth() > 1]
    assert len({(line.get_color(), line.get_linestyle()) for line in means}) == len(shown)
    write_report(folder)
    assert "test window: uniform, searched, tuned, uniform_tuned." in (folder / "report.html").read_text()


def test_exported_checkpoints_are_listed(tmp_path):
    folder = make_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    export = {"folder": "here/hf", "written_bytes": 1234567, "kl": 1.5e-5, "same_top_token": 0.998, "files": {}}
    results["exports"] = {"hf": export}
    (folder / "results.json").write_text(json.dumps(results))
    for name in ("profile.json", "search.jsonl", "seconds.json"):
        (folder / name).unlink()
    page = Page(write_report(folder))
    assert ["hf", "1.23", "1.5e-05", "0.9980", "here/hf"] in page.rows
    assert {1234567, 1.5e-5, 0.998} <= set(page.numbers)
