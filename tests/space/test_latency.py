"""A budget of latency sums the times of a table, in whole nanoseconds."""

import json
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.space.build import drop_space, layer_space
from evopress.space.latency import LatencyBudget, LatencyTable, read_table, table_json, with_latencies
from evopress.space.seconds import in_seconds, parse_seconds
from evopress.space.settings import SpaceSettings
from evopress.space.shapes import layer_shape
from tests.tiny_models import NUM_BLOCKS, tiny

BITS = RTN(bits=[2, 4], group_size=32)
ATTENTION, REST = 5e-6, 7e-6


def seconds_of(rows: int, cols: int, label: str) -> float:
    return rows * cols * {"dense": 16, "4bit": 4, "2bit": 2}[label] * 1e-10


def table_of(family: str = "llama", **changes: object) -> LatencyTable:
    lm = tiny(family)
    shapes = [layer_shape(lm, lm.layer_name(b, local)) for b in range(NUM_BLOCKS) for local in lm.layers(b)]
    layers = {
        f"{shape.rows}x{shape.cols}": {
            label: seconds_of(shape.rows, shape.cols, label) for label in ("dense", "4bit", "2bit")
        }
        for shape in shapes
    }
    return replace(LatencyTable(1, 512, layers, ATTENTION, REST), **changes)


def budget_of(table: LatencyTable, folder, target: str = "1ms", **settings: object) -> LatencyBudget:
    path = folder / "table.json"
    path.write_text(table_json(table))
    return LatencyBudget(target=target, table=str(path), **settings)


@pytest.mark.parametrize("drops", ["none", "subblock"])
def test_the_time_of_a_profile_is_the_sum_over_layers_attentions_and_the_rest(drops, tmp_path):
    lm, table = tiny("llama"), table_of()
    space = layer_space(lm, BITS, SpaceSettings(trade="any", drops=drops))
    space = with_latencies(space, lm, BITS, table)
    budget = budget_of(table, tmp_path)
    profile = tuple(i % len(unit.levels) if unit.layers else int(i == 0) for i, unit in enumerate(space.units))
    dropped = int(drops != "none")
    expected = REST + ATTENTION * (NUM_BLOCKS - dropped)
    for i, unit in enumerate(space.units):
        for layer in unit.layers if not space.is_inside_dropped(i, profile) else ():
            shape = layer_shape(lm, layer)
            expected += seconds_of(shape.rows, shape.cols, unit.levels[profile[i]].label)
    assert budget.achieved(space, profile) == pytest.approx(expected, abs=1e-9 * len(space))
    nanoseconds = round(budget.achieved(space, profile) * 1e9)
    assert replace(budget, target=f"{nanoseconds / 1000}us").holds(space, profile)
    assert not replace(budget, target=f"{(nanoseconds - 1) / 1000}us").holds(space, profile)


def test_drops_alone_save_the_dense_layers_and_the_attention(tmp_path):
    lm, table = tiny("llama"), table_of()
    space = with_latencies(drop_space(lm, Drop(granularity="block")), lm, None, table)
    budget = budget_of(table, tmp_path)
    kept, dropped = ((0,) * NUM_BLOCKS, (1, *(0 for _ in range(NUM_BLOCKS - 1))))
    shapes = [layer_shape(lm, lm.layer_name(0, local)) for local in lm.layers(0)]
    saved = ATTENTION + sum(seconds_of(shape.rows, shape.cols, "dense") for shape in shapes)
    difference = budget.achieved(space, kept) - budget.achieved(space, dropped)
    assert difference == pytest.approx(saved, abs=1e-8)


def test_a_token_waits_only_for_its_own_experts(tmp_path):
    lm, table = tiny("mixtral"), table_of("mixtral")
    space = with_latencies(layer_space(lm, BITS, SpaceSettings()), lm, BITS, table)
    experts = [unit for unit in space.units if "experts.0.w1" in unit.name]
    shape = layer_shape(lm, experts[0].layers[0])
    assert experts[0].levels[0].cost == pytest.approx(seconds_of(shape.rows, shape.cols, "4bit") * 1e9 * 2 / 5, abs=1)


def test_a_level_counts_as_no_faster_than_more_compressed_ones(caplog):
    lm, table = tiny("llama"), table_of()
    layers = {shape: {**times, "2bit": 2 * times["4bit"]} for shape, times in table.layers.items()}
    space = with_latencies(layer_space(lm, BITS, SpaceSettings()), lm, BITS, replace(table, layers=layers))
    assert all(unit.levels[0].cost == unit.levels[1].cost for unit in space.units)
    assert "leave the slow levels out of compress" in caplog.text


def test_a_table_that_lacks_a_level_is_refused():
    lm, table = tiny("llama"), table_of()
    layers = {shape: {"dense": 1.0} for shape in table.layers}
    with pytest.raises(ValueError, match=r"no time for layers of 64x64 at level '4bit' \(model.layers.0.self_attn"):
        with_latencies(layer_space(lm, BITS, SpaceSettings()), lm, BITS, replace(table, layers=layers))


def test_tables_are_json_or_yaml_and_read_as_written(tmp_path):
    table = table_of()
    (tmp_path / "table.json").write_text(table_json(table))
    assert read_table(str(tmp_path / "table.json")) == table
    (tmp_path / "table.yaml").write_text(
        "batch: 1\nlength: 8\nlayers: {64x64: {4bit: 1.0e-5, dense: 2.0e-5}}\nattention: 0\nrest: 0.001\n"
    )
    assert read_table(str(tmp_path / "table.yaml")).layers == {"64x64": {"4bit": 1e-5, "dense": 2e-5}}


@pytest.mark.parametrize(
    "change",
    [{"layers": 3}, {"layers": {"64x64": 1}}, {"rest": -1}, {"rest": "x"}, {"attention": None}, {"other": 1}],
    ids=str,
)
def test_a_file_that_is_no_table_is_refused(change, tmp_path):
    (tmp_path / "table.json").write_text(json.dumps({**asdict(table_of()), **change}))
    with pytest.raises(ValueError, match=r"cannot be read .*: it must have batch, length, layers"):
        read_table(str(tmp_path / "table.json"))


def test_a_table_of_another_batch_or_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is for batch 1 and length 512: set budget.batch"):
        budget_of(table_of(), tmp_path, batch=4).read_table()


def test_the_content_of_a_table_counts_and_not_its_place(tmp_path):
    first = budget_of(table_of(), tmp_path)
    (tmp_path / "other").mkdir()
    moved = budget_of(table_of(), tmp_path / "other")
    changed = budget_of(table_of(rest=1.0), tmp_path / "other")
    assert first.identity == budget_of(table_of(), tmp_path).identity
    assert first.identity != changed.identity
    assert moved.table == changed.table


@given(st.integers(0, 10**6), st.sampled_from(["us", "ms", "s", ""]))
def test_a_time_is_exact(number, unit):
    per_second = {"us": 10**6, "ms": 1000, "s": 1, "": 1}[unit]
    assert parse_seconds(f"{number / 1000} {unit}") == Fraction(str(number / 1000)) / per_second


@pytest.mark.parametrize(("seconds", "text"), [(0.0125, "12.5 ms"), (2.0, "2 s"), (3.2e-5, "32 us")])
def test_a_time_is_printed_in_its_unit(seconds, text):
    assert in_seconds(seconds) == text
    assert float(parse_seconds(text)) == pytest.approx(seconds)


@pytest.mark.parametrize("target", ["20 minutes", "fast", -1, "1MB"])
def test_other_targets_are_refused(target):
    with pytest.raises(ValidationError, match="is not a time"):
        LatencyBudget(target=target, table="table.json")


def test_every_profile_within_the_target_is_within_the_cap(tmp_path):
    lm, table = tiny("llama"), table_of()
    space = with_latencies(layer_space(lm, BITS, SpaceSettings()), lm, BITS, table)
    space = replace(space, units=space.units[:8])
    budget = budget_of(table, tmp_path, target="50us")
    for profile in product(range(2), repeat=8):
        assert budget.holds(space, profile) == (budget.achieved(space, profile) <= 50e-6)
