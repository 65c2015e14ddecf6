"""A model with changed levels shares everything else with the model that it comes from."""

from collections import Counter
from dataclasses import replace

from evopress.compressors.rtn import RTN
from evopress.database.cache import DecodedLevels
from evopress.database.resident import ResidentLevels, Room
from evopress.evaluation.evaluator import Evaluator
from evopress.tuning.tuned_model import changed_context
from evopress.weights.dense import Kept
from tests.tiny_models import token_windows
from tests.tuning.models import tunable_context


class Counting:
    """A database, and how often each level was read from it."""

    def __init__(self, database):
        self.database = database
        self.reads: Counter[tuple[int, str, int]] = Counter()

    def read(self, *key):
        self.reads[key] += 1
        return self.database.read(*key)


def test_levels_that_are_resident_are_not_read_again_for_a_changed_model(tmp_path):
    context = tunable_context(RTN(bits=(3, 2), group_size=32), tmp_path)
    lm, stored = context.lm, Counting(context.database)
    resident = ResidentLevels(stored, lambda: [Room(lambda weight: weight, 10**9)])
    weights = DecodedLevels(stored, limit_bytes=1, dtype=lm.dtype, device=lm.device, resident=resident)
    evaluator = Evaluator(lm, context.space, weights, context.evaluator.settings)
    context = replace(context, evaluator=evaluator)
    profile, tokens = context.space.uniform(1), token_windows(2, 16)
    before = evaluator.evaluate([profile], tokens)
    layer = context.space.units[0].layers[0]
    other = {(layer, 1): Kept(context.database.read(0, layer, 0).dense())}
    changed = changed_context(context, other, lm=lm, cache_gb=0)
    assert changed.evaluator.evaluate([profile], tokens) != before
    assert set(stored.reads.values()) == {1}
