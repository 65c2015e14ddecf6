"""The I types: decoded in torch to exactly the numbers of gguf-py."""

import pytest
import torch
from safetensors.torch import load, save

from evopress.weights.base import from_tensors
from evopress.weights.ggml import bits_per_weight
from evopress.weights.i_types import I_TYPES
from evopress.weights.iquants import IWeight

gguf = pytest.importorskip("gguf")


def random_weight(name: str, *, rows: int = 3, blocks: int = 40) -> IWeight:
    """Random bytes, with factors d of about 1."""
    generator = torch.Generator().manual_seed(I_TYPES[name].number)
    data = torch.randint(0, 256, (rows, blocks, I_TYPES[name].num_bytes), generator=generator, dtype=torch.uint8)
    d = (torch.rand(rows, blocks, generator=generator) + 0.5).half()
    data[..., :2] = d.unsqueeze(-1).view(torch.uint8)
    return IWeight(data.flatten(1), name)


@pytest.mark.parametrize("name", I_TYPES)
def test_random_bytes_decode_to_the_numbers_of_gguf(name):
    weight = random_weight(name)
    expected = gguf.dequantize(weight.data.numpy(), gguf.GGMLQuantizationType[name])
    assert torch.equal(weight.dense(), torch.from_numpy(expected))
    assert weight.shape == expected.shape
    assert torch.equal(weight.dense(torch.bfloat16), weight.dense().bfloat16())


@pytest.mark.parametrize("name", I_TYPES)
def test_numbers_and_sizes_are_those_of_gguf(name):
    kind = gguf.GGMLQuantizationType[name]
    assert (I_TYPES[name].num_weights, I_TYPES[name].num_bytes) == gguf.GGML_QUANT_SIZES[kind]
    assert I_TYPES[name].number == int(kind)
    assert bits_per_weight(name) == 8 * I_TYPES[name].num_bytes / I_TYPES[name].num_weights


@pytest.mark.parametrize("name", I_TYPES)
def test_a_weight_survives_a_file(name):
    weight = random_weight(name)
    again = from_tensors(weight.spec(), load(save(weight.tensors())))
    assert isinstance(again, IWeight) and torch.equal(again.dense(), weight.dense())
    assert weight.size_bytes == sum(tensor.nbytes for tensor in weight.tensors().values())
    with pytest.raises(ValueError, match="are not whole blocks"):
        from_tensors(weight.spec(), {"data": weight.data[:, :-1].clone()})


@pytest.mark.parametrize("name", I_TYPES)
def test_the_factors_can_be_tuned(name):
    weight = random_weight(name)
    (part,) = weight.float_parts().values()
    torch.testing.assert_close(weight.dense_with({"d": part.value}), weight.dense())
    assert torch.equal(weight.with_float_parts({"d": part.value}).data, weight.data)
    doubled = weight.with_float_parts({"d": 2 * part.value})
    torch.testing.assert_close(doubled.dense(), 2 * weight.dense())
