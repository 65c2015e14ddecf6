"""Outlier shares equal plain ones, computed from the recorded inputs of all layers."""

import pytest
import torch

from evopress.evaluation.outliers import outlier_shares
from tests.evaluation.recorded import inputs_and_outputs
from tests.tiny_models import NUM_BLOCKS, tiny, token_windows

TOKENS = token_windows(3, 20)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text", "opt"])
def test_outliers_are_the_share_of_scores_far_above_their_mean(family):
    lm, multiples = tiny(family), (0.5, 1.0, 2.0, 5.0)
    shares_of_blocks = outlier_shares(lm, TOKENS, multiples)
    for block, (prefix, row) in enumerate(zip(lm.block_names, shares_of_blocks, strict=True)):
        scores = []
        for local in lm.layers(block):
            X, _ = inputs_and_outputs(lm.model, f"{prefix}.{local}", TOKENS)
            weight = lm.model.get_submodule(f"{prefix}.{local}").weight.double()
            scores.append((weight.abs() * X.flatten(0, -2).norm(dim=0)).flatten())
        together = torch.cat(scores)
        shares = [float((together > multiple * together.mean()).double().mean()) for multiple in multiples]
        assert row == pytest.approx(shares, abs=2 / len(together))
        assert shares[0] > shares[1] > shares[2] > 0


def test_there_is_a_row_per_block():
    assert len(outlier_shares(tiny("llama"), TOKENS, (5.0,))) == NUM_BLOCKS
