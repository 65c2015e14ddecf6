"""The errors of a unit are those of its layers."""

import pytest

from evopress.compressors.rtn import RTN
from evopress.database.store import BlockLevels, Database
from evopress.evaluation.layer_errors import layer_errors
from evopress.space.build import layer_space
from evopress.space.settings import SpaceSettings
from tests import plain
from tests.tiny_models import tiny


@pytest.mark.parametrize("tie", ["none", "engine"])
def test_errors_of_tied_layers_add_up(tie, tmp_path):
    lm = tiny("llama")
    compressor = RTN(bits=(4, 3, 2), group_size=32)
    database = Database.open(tmp_path, "test", {})
    names = [[lm.layer_name(block, local) for local in lm.layers(block)] for block in range(lm.num_blocks)]
    errors = {name: [float(i), i + 0.25, i + 0.5] for i, name in enumerate(name for block in names for name in block)}
    levels = plain.layer_levels(lm, compressor)
    for block, inside in enumerate(names):
        database.put(
            block, BlockLevels({name: levels[name] for name in inside}, {name: errors[name] for name in inside})
        )
    space = layer_space(lm, compressor, SpaceSettings(tie=tie))
    assert layer_errors(space, database) == [
        [sum(errors[layer][level] for layer in unit.layers) for level in range(3)] for unit in space.units
    ]
