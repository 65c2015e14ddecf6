"""A question decodes each level that it needs once, however many runs it has and however little memory there is."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch

from evopress.compressors.rtn import RTN
from evopress.database.cache import DecodedLevels
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.evaluation.switch_effects import switch_effects
from evopress.models.state_storage import StateMemory
from evopress.space.build import layer_space
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile
from tests import plain
from tests.tiny_models import tiny, token_windows

TOKENS = token_windows(5, 20)
LITTLE = EvaluatorSettings(cache_gb=1e-9, states_gb=1e-9, batch_tokens=40)
Level = tuple[str, int]


class RoundsEmbeddingAndHead(RTN):
    compresses_embeddings = True


class Counting(DecodedLevels):
    """Counts how often each level of each layer is decoded."""

    decodes: Counter[Level]

    def _decode(self, block: int, layer: str, level: int) -> torch.Tensor:
        self.decodes[layer, level] += 1
        return super()._decode(block, layer, level)


def evaluator_of(family: str, folder: Path, settings: EvaluatorSettings, *, outside: bool) -> Evaluator:
    lm, compressor = tiny(family), (RoundsEmbeddingAndHead if outside else RTN)(bits=(2, 3, 4), group_size=32)
    database = plain.filled_database(lm, plain.layer_levels(lm, compressor), folder)
    limit = int(settings.cache_gb * 1e9)
    weights = Counting(database, limit_bytes=limit, dtype=lm.dtype, device=lm.device)
    weights.decodes = Counter()
    return Evaluator(lm, layer_space(lm, compressor, SpaceSettings()), weights, settings, folder=folder)


def profiles_of(evaluator: Evaluator, count: int) -> list[Profile]:
    rng = Random(0)
    return [tuple(rng.randrange(len(unit.levels)) for unit in evaluator.space.units) for _ in range(count)]


def levels_of(evaluator: Evaluator, profiles: list[Profile]) -> set[Level]:
    return {
        (layer, level)
        for profile in profiles
        for unit, level in zip(evaluator.space.units, profile, strict=True)
        for layer in unit.layers
    }


@pytest.mark.parametrize(("family", "outside"), [("llama", True), ("gemma2", True), ("qwen3_moe", False)])
def test_fitness_decodes_each_level_of_the_profiles_once(family, outside, tmp_path):
    evaluator = evaluator_of(family, tmp_path, LITTLE, outside=outside)
    profiles = profiles_of(evaluator, 6)
    evaluator.evaluate(profiles, TOKENS)  # three parts, no memory for states or for levels of another block
    assert evaluator.weights.decodes == Counter(levels_of(evaluator, profiles))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_table_decodes_each_level_once_in_a_forward_and_once_in_a_backward_pass(family, tmp_path):
    evaluator = evaluator_of(family, tmp_path, LITTLE, outside=False)
    (profile,) = profiles_of(evaluator, 1)
    model, memory = evaluator.compressible, evaluator.state_memory
    switch_effects(model, profile, parts=TOKENS.split(1), draws=1, rng=Random(0), memory=memory)
    forward = Counter(levels_of(evaluator, [profile]))
    backward = Counter(levels_of(evaluator, [evaluator.space.uniform(level) for level in range(3)]))
    decodes = evaluator.weights.decodes
    assert not decodes - (forward + backward)
    assert family != "llama" or decodes.keys() == backward.keys()  # tokens may miss an expert


def test_states_in_files_change_no_bit(tmp_path):
    ample, little = (
        evaluator_of("llama", tmp_path / str(states_gb), EvaluatorSettings(states_gb=states_gb), outside=False)
        for states_gb in (2.0, 1e-4)
    )
    profiles = profiles_of(ample, 5)
    assert ample.evaluate(profiles, TOKENS) == little.evaluate(profiles, TOKENS)
    tables = [
        switch_effects(
            evaluator.compressible,
            profiles[0],
            parts=TOKENS.split(1),
            draws=2,
            rng=Random(0),
            memory=evaluator.state_memory,
        )
        for evaluator in (ample, little)
    ]
    assert torch.equal(tables[0].first, tables[1].first) and torch.equal(tables[0].second, tables[1].second)
    assert not list(tmp_path.rglob(".states*"))


def test_states_beyond_the_limit_are_mapped_from_files(tmp_path, monkeypatch):
    mapped = []
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *args, **kwargs: mapped.append(args) or from_file(*args, **kwargs))
    states = [torch.randn(2, 3, 4) for _ in range(5)]
    kept = StateMemory(2 * 3 * states[0].nbytes, tmp_path).share(2).keep(iter(states))
    assert all(torch.equal(state, copy) for state, copy in zip(states, kept, strict=True))
    assert [state is copy for state, copy in zip(states, kept, strict=True)] == [True] * 3 + [False] * 2
    assert len(mapped) == 2 and not list(tmp_path.iterdir())
