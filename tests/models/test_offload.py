"""A model whose blocks rest elsewhere and visit the device computes what it computes at home.

No second device is needed: every tensor is said to rest elsewhere, so that the copies compute.
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
from tests.tiny_models import FAMILIES, NUM_BLOCKS, WITH_EXPERTS, tiny, token_windows


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr("evopress.models.offload.is_offloaded", lambda tensor, device: True)


def judged(lm: LanguageModel, folder) -> list:
    """A compressed profile and one with drops: block-major, and as whole models."""
    compressor, tokens = RTN(bits=(2, 4), group_size=32), token_windows(2, 20)
    bits, drops = layer_space(lm, compressor, SpaceSettings()), drop_space(lm, Drop())
    database = plain.filled(lm, plain.layer_levels(lm, compressor), folder)
    weights = DecodedLevels(database, limit_bytes=10**9, dtype=lm.dtype, device=lm.device)
    found: list = []
    for space, levels, profile in ((bits, weights, bits.uniform(1)), (drops, None, (1, 0) * NUM_BLOCKS)):
        evaluator = Evaluator(lm, space, levels, EvaluatorSettings())
        found += [(each.mean_kl, each.perplexity) for each in evaluator.measure([profile, None], tokens)]
        with applied(lm, space, levels, profile) as model:
            found.append(model(input_ids=tokens, use_cache=False).logits.sum().item())
    return found


@pytest.mark.parametrize("family", FAMILIES + WITH_EXPERTS)
def test_copies_of_blocks_compute_what_the_blocks_do(family, tmp_path, request):
    lm = tiny(family)
    at_home = judged(lm, tmp_path / "home")
    request.getfixturevalue("elsewhere")
    assert judged(lm, tmp_path / "elsewhere") == at_home
    assert lm._device_copy.tensors
