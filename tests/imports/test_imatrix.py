"""Importance matrices of llama-imatrix."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evopress.compressors.base import LayerGroup
from evopress.compressors.gguf import GGUF
from evopress.imports import power_of
from evopress.space.shapes import LayerShape
from tests.groups import group

gguf = pytest.importorskip("gguf")

LAYER = "model.layers.1.mlp.down_proj"
NAME = "blk.1.ffn_down.weight"


def written(path: Path, sums: torch.Tensor, *, count: float | None = 10.0, name: str = NAME) -> str:
    """A file with the sums of squares of one layer."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_string("general.type", "imatrix")
    writer.add_tensor(f"{name}.in_sum2", sums.view(1, -1).numpy())
    if count is not None:
        writer.add_tensor(f"{name}.counts", torch.tensor([[count]]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_the_mean_squares_of_a_layer_are_found_by_its_name_in_transformers(tmp_path):
    sums = torch.rand(64)
    path = written(tmp_path / "imatrix.gguf", sums)
    torch.testing.assert_close(power_of(path, LAYER, 64), sums / 10)
    assert power_of(path, "model.layers.0.mlp.down_proj", 64) is None
    assert power_of(path, "model.embed_tokens", 64) is None


WRONG = {
    "no file": (lambda path: str(path), "which is not a file"),
    "no GGUF": (lambda path: path.write_text("old") and str(path), "cannot be read as GGUF"),
    "no counts": (lambda path: written(path, torch.ones(64), count=None), f"{NAME} of .* is not a sum of squares"),
    "negative": (lambda path: written(path, -torch.ones(64)), f"{NAME} of .* is not a sum of squares"),
    "not finite": (lambda path: written(path, torch.full((64,), torch.inf)), f"{NAME} of .* is not a sum of squares"),
    "another width": (lambda path: written(path, torch.ones(32)), f"{NAME} of .* has 32 inputs, but {LAYER} has 64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_does_not_fit_is_refused_before_the_model_is_loaded(case, tmp_path):
    write, message = WRONG[case]
    with pytest.raises(ValueError, match=rf"compress\.imatrix.*{message}"):
        GGUF(imatrix=write(tmp_path / "imatrix.gguf")).levels(LayerShape(LAYER, 32, 64))


def test_a_file_of_another_kind_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("output_norm.weight", torch.ones(64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="so it is not an importance matrix"):
        power_of(str(tmp_path / "model.gguf"), LAYER, 64)


def test_columns_that_the_file_calls_important_are_rounded_better(tmp_path):
    """With the identity as Hessian, GPTQ rounds to nearest, so only the search of the grids differs."""
    layers = replace(group((32,), 64), hessian=torch.eye(64))
    layers = LayerGroup((LAYER,), layers.weights, layers.hessian)
    sums = torch.ones(64)
    sums[::4] = 1000
    path = written(tmp_path / "imatrix.gguf", sums)
    compressor = GGUF(types=("Q4_0",))
    errors = []
    for each in (compressor, replace(compressor, imatrix=path)):
        change = each.compress(layers).levels[0][0].dense() - layers.weights[0]
        errors.append(float(change[:, ::4].square().sum()))
    assert errors[1] < 0.8 * errors[0]


def test_the_content_of_the_file_is_part_of_what_levels_depend_on(tmp_path):
    first, second = (written(tmp_path / f"{value}.gguf", torch.full((64,), value)) for value in (1.0, 2.0))
    identities = [GGUF(imatrix=path).inputs_identity for path in (first, second)]
    assert identities[0] != identities[1]
    assert GGUF().inputs_identity == {}
