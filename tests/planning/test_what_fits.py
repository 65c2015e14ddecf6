"""The table of what fits in a memory says what a budget then allows, and needs only the configuration of a model."""

import logging
import re
from dataclasses import replace

import pytest

from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.pipeline import run_job
from evopress.planning.planned_run import plan_run, space_of
from evopress.planning.what_fits import cache_types, contexts_around, what_fits_text
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.memory import MemoryBudget
from evopress.space.settings import SpaceSettings
from tests.jobs import small_job
from tests.tiny_models import config, tokenizer

BUDGET = MemoryBudget(target="260KB", context=64, reserve="10KB")


@pytest.fixture
def only_config(tmp_path):
    """A folder without weights and without a tokenizer."""
    config("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def planned(tmp_path, model, **changes):
    settings = {"budget": BUDGET, "compress": RTN(bits=[2, 4], group_size=32), "stages": ("plan",), **changes}
    return plan_run(small_job(tmp_path / "run", tmp_path, model, **settings))


def rows_of(text: str) -> dict[int, list[str]]:
    """The cells of the table below "left", by context."""
    lines = [line for line in text.splitlines() if re.match(r" *\d+ +[\d.]+ [KM]B ", line)]
    return {
        int(line.split()[0]): [line[9:][26 * i + 18 : 26 * (i + 1)].strip() for i in range(len(line) // 26)]
        for line in lines
    }


@pytest.mark.parametrize("compress", [RTN(bits=[2, 4], group_size=32), GGUF(types=["Q8_0", "Q4_0"])])
def test_a_profile_with_the_bits_that_are_left_fits_and_one_with_more_does_not(compress, only_config, tmp_path):
    run = planned(tmp_path, only_config, compress=compress)
    cells = rows_of(what_fits_text(run, BUDGET))
    assert list(cells) == [16, 32, 64, 128, 256]
    for context, (cell, *_) in cells.items():
        budget = replace(BUDGET, context=context)
        space = space_of(replace(run.job, budget=budget), run.model)
        if cell == "-":
            with pytest.raises(ValueError, match=r"raise budget\.target, lower budget\.context"):
                evenly_spaced_profile(space, budget)
            continue
        for level in range(2):
            profile = space.uniform(level)
            bits = 8 * (space.size_bytes(profile) - space.fixed_bytes) / space.num_weights
            assert budget.holds(space, profile) == (bits <= float(cell) + 0.005)


def test_longer_contexts_leave_less_and_smaller_caches_more(only_config, tmp_path):
    cells = rows_of(what_fits_text(planned(tmp_path, only_config), BUDGET))
    values = [[float(cell) if cell != "-" else 0.0 for cell in row] for row in cells.values()]
    assert values == [sorted(row) for row in values]
    columns = list(zip(*values, strict=True))
    assert columns == [tuple(sorted(column, reverse=True)) for column in columns]


def test_drops_are_left_as_a_share(only_config, tmp_path):
    text = what_fits_text(planned(tmp_path, only_config, compress=Drop()), replace(BUDGET, target="200KB"))
    assert all(cell.endswith("%") for cell in rows_of(text)[64])


def test_joint_spaces_count_every_cache(only_config, tmp_path):
    joint = SpaceSettings(trade="any", drops="subblock")
    plain, with_drops = (
        rows_of(what_fits_text(planned(tmp_path, only_config, space=space), BUDGET))
        for space in (SpaceSettings(), joint)
    )
    assert plain == with_drops


def test_only_caches_of_the_engine_are_shown():
    assert cache_types("f16", ("f16", "bf16", "fp8", "q8_0", "q4_0")) == ["f16", "q8_0", "fp8", "q4_0"]
    assert cache_types("q8_0", ("f16", "bf16", "q8_0", "q4_0")) == ["q8_0", "q4_0"]
    assert cache_types("fp8", ("f16", "bf16", "fp8")) == ["fp8"]


def test_contexts_end_where_the_model_does():
    assert contexts_around(1000, 2500) == [250, 500, 1000, 2000]
    assert contexts_around(1000, 500) == [250, 500, 1000]
    assert contexts_around(3, None) == [1, 3]


def test_the_table_comes_before_the_error_of_a_budget_out_of_reach(only_config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tokenizer().save_pretrained(only_config)
    job = planned(tmp_path, only_config).job
    with pytest.raises(ValueError, match="the most compressed profile has"):
        run_job(replace(job, budget=replace(BUDGET, target="20KB")))
    assert "context" in caplog.text and rows_of(caplog.text)
