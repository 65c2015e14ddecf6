"""The levels of a run in plots: grouped, arranged by block, and added up in bytes."""

import json
from functools import partial
from random import Random

import pytest

from evopress.report.choices import choices_of
from evopress.report.figures import level_histogram, profile_map
from evopress.report.level_groups import byte_parts, level_groups
from evopress.report.read_run import read_run
from evopress.report.style import LIGHT, render
from evopress.space.profile_files import to_json
from evopress.space.units import Space
from tests.run_folders import KINDS, SETTINGS
from tests.spaces import bit_space, drop_space, sparse_space


def test_the_parts_of_a_file_add_up_to_its_size(finished_run):
    run = read_run(finished_run)
    for name in ("dense", "searched"):
        assert sum(size for row, _, size in byte_parts(run) if row == name) == run.candidates[name].size_bytes


def test_units_are_arranged_by_block_and_kind(finished_run):
    run = read_run(finished_run)
    assert run.kinds == ["q", "k", "v", "o", "gate", "up", "down"]
    assert list(run.cells) == [(block, kind) for block in range(2) for kind in run.kinds]
    assert [choice.level for choice in run.cells.values()] == [choice.level for choice in run.choices]
    assert len(run.choices) == 2 * len(KINDS)


@pytest.mark.parametrize(
    "space", [bit_space([8, 8, 16]), drop_space(4), sparse_space(5)], ids=["bits", "drop", "sparse"]
)
def test_profiles_of_every_compressor_are_read_and_drawn(space: Space, tmp_path):
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


def test_many_levels_are_grouped_by_tenths():
    space = sparse_space(20, step=1)
    profile = tuple(index for index in range(len(space)))
    groups = level_groups(choices_of(json.loads(to_json(space, profile))))
    assert [group.label for group in groups] == ["0.3 to 0.4", "0.4 to 0.5", "0.5 to 0.6", "0.6 to 0.7"]
    assert [len(group.members) for group in groups] == [10, 10, 10, 10]
