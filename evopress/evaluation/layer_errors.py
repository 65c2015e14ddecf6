"""The errors that the compressor measured for every level, by unit."""

from evopress.database.store import Database
from evopress.space.units import OUTSIDE, Space


def layer_errors(space: Space, database: Database) -> list[list[float]]:
    """[unit][level]: the compressor's normalised errors, summed over the layers of the unit.

    A sub-block that may be dropped has no layers of its own. If it is dropped, the layers inside it lose all of their
    output, so each of them has an error of 1.
    """
    return [_unit_errors(space, database, index) for index in range(len(space))]


def _unit_errors(space: Space, database: Database, index: int) -> list[float]:
    unit = space.units[index]
    if index in space.children:
        num_layers = sum(len(space.units[child].layers) for child in space.children[index])
        return [0.0, float(num_layers)][: len(unit.levels)]
    block = unit.blocks[0] if unit.blocks else OUTSIDE
    errors_of_layers = [database.errors(block, layer) for layer in unit.layers]
    return [sum(errors) for errors in zip(*errors_of_layers, strict=True)]
