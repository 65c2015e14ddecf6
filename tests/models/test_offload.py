"""A model with offloaded blocks computes what it computes without offloading.

No second device is needed: the tests declare every tensor offloaded, so that copies of the blocks compute.
"""

import pytest

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.database.cache import DecodedLevels
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.models.language_model import LanguageModel
from evopress.space.apply import applied
from evopress.space.build import drop_space, layer_space
from evopress.space.settings import SpaceSettings
from tests import plain
from tests.marks import slow_except
from tests.tiny_models import FAMILIES, NUM_BLOCKS, WITH_EXPERTS, tiny, token_windows


@pytest.fixture
def offloaded(monkeypatch):
    monkeypatch.setattr("evopress.models.offload.is_offloaded", lambda tensor, device: True)


def results_of(lm: LanguageModel, folder) -> list:
    """What a compressed profile and one with drops give: in the evaluator, and as whole models."""
    compressor, tokens = RTN(bits=(2, 4), group_size=32), token_windows(2, 20)
    bits, drops = layer_space(lm, compressor, SpaceSettings()), drop_space(lm, Drop())
    database = plain.filled_database(lm, plain.layer_levels(lm, compressor), folder)
    weights = DecodedLevels(database, limit_bytes=10**9, dtype=lm.dtype, device=lm.device)
    results: list = []
    for space, levels, profile in ((bits, weights, bits.uniform(1)), (drops, None, (1, 0) * NUM_BLOCKS)):
        evaluator = Evaluator(lm, space, levels, EvaluatorSettings())
        divergences = evaluator.measure([profile, None], tokens)
        results += [(divergence.mean_kl, divergence.perplexity) for divergence in divergences]
        with applied(lm, space, levels, profile) as model:
            results.append(model(input_ids=tokens, use_cache=False).logits.sum().item())
    return results


@pytest.mark.parametrize("family", slow_except(FAMILIES + WITH_EXPERTS, ("llama", "opt", "mixtral")))
def test_copies_of_offloaded_blocks_compute_what_the_blocks_compute(family, tmp_path, request):
    lm = tiny(family)
    expected = results_of(lm, tmp_path / "resident")
    request.getfixturevalue("offloaded")
    assert results_of(lm, tmp_path / "offloaded") == expected
    assert lm._device_copy.blocks
