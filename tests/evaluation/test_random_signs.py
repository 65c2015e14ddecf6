"""Signs are random, and depend on nothing but the seed, the draw and their place."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from evopress.evaluation.random_signs import _GAMMA, _mixed, random_signs

CPU = torch.device("cpu")


def signs(rows: int, cols: int, *, seed: int = 0, draw: int = 0, first_row: int = 0) -> Tensor:
    return random_signs((rows, cols), seed=seed, draw=draw, first_row=first_row, device=CPU)


def test_the_words_are_those_of_splitmix64():
    """The reference output of the generator for the seed 1234567."""
    words = _mixed(1234567 + torch.arange(1, 6) * _GAMMA)
    expected = (
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    )
    assert [word % 2**64 for word in words.tolist()] == list(expected)


@pytest.mark.parametrize("cols", [1, 63, 64, 65, 500])
def test_signs_do_not_depend_on_the_rows_that_are_drawn_with_them(cols):
    whole = signs(20, cols)
    assert whole.shape == (20, cols) and whole.dtype == torch.int8
    assert torch.equal(whole.abs(), torch.ones_like(whole))
    assert torch.equal(torch.cat([signs(7, cols), signs(13, cols, first_row=7)]), whole)


def test_signs_have_mean_zero_and_no_correlation():
    """Between columns, rows, draws and seeds, within five standard deviations."""
    rows, cols = 2000, 130
    drawn = [signs(rows, cols, seed=seed, draw=draw).float() for seed in (0, 1, 2**63 - 1) for draw in range(2)]
    for matrix in drawn:
        assert float(matrix.mean().abs()) < 5 / (rows * cols) ** 0.5
        covariance = matrix.T @ matrix / rows - torch.eye(cols)
        assert float(covariance.abs().max()) < 5.5 / rows**0.5
        assert float((matrix[1:] * matrix[:-1]).mean().abs()) < 5 / (rows * cols) ** 0.5
    for index, first in enumerate(drawn):
        for second in drawn[:index]:
            assert float((first * second).mean().abs()) < 5 / (rows * cols) ** 0.5


def test_signs_are_drawn_on_the_device_and_with_integers_only():
    with patch("torch.randint", side_effect=AssertionError), patch("torch.rand", side_effect=AssertionError):
        drawn = random_signs((3, 100), seed=5, draw=1, first_row=2, device=torch.device("meta"))
    assert drawn.device.type == "meta" and drawn.shape == (3, 100)
