"""The block types of ggml: every bit pattern decodes as in the gguf package, and parts survive packing."""

import pytest
import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight, from_tensors
from evopress.weights.block_grids import TYPES
from evopress.weights.ggml import block_of
from evopress.weights.k_types import K_TYPES, SUPERBLOCK
from tests.k_weights import k_weight, random_parts

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

NAMES = (*TYPES, *K_TYPES)


def of_bytes(name: str, data: Tensor) -> CompressedWeight:
    return from_tensors({"kind": "ggml", "type": name}, {"data": data})


def random_bytes(name: str, rows: int = 400) -> Tensor:
    """Two blocks per row of any bytes: all are valid, even if the float16 numbers in them are NaN or infinite."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (rows, 2 * block_of(name)[1]), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", K_TYPES)
def test_a_superblock_has_the_size_that_ggml_gives_it(name):
    assert (SUPERBLOCK, K_TYPES[name].num_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, where infinite scales meet zeros
@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_decode_as_in_the_gguf_package_bit_for_bit(name):
    data = random_bytes(name)
    ours = of_bytes(name, data).dense()
    theirs = torch.from_numpy(gguf.dequantize(data.numpy(), gguf.GGMLQuantizationType[name]))
    assert ours.shape == theirs.shape
    assert torch.equal(ours.isnan(), theirs.isnan()) and float(ours.isnan().float().mean()) < 0.2
    assert torch.equal(ours.nan_to_num(0.0).view(torch.int32), theirs.nan_to_num(0.0).view(torch.int32))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_decoded_on_their_device(name):
    """A tensor on the device `meta` has no values, so it cannot be copied to the host."""
    weight = of_bytes(name, random_bytes(name, rows=2).to("meta")).dense(torch.bfloat16)
    assert weight.device.type == "meta" and weight.dtype == torch.bfloat16
    assert weight.shape == (2, 2 * block_of(name)[0])


@pytest.mark.parametrize("name", K_TYPES)
def test_a_weight_is_scale_times_code_minus_minimum(name):
    parts = random_parts(name)
    d, dmin = parts.d.unsqueeze(2).double(), parts.dmin.unsqueeze(2).double()
    steps, minima = ((d * parts.scales).unsqueeze(3), (dmin * parts.minima).unsqueeze(3))
    codes = parts.codes.unflatten(1, (2, -1, K_TYPES[name].sub_block))
    dense = k_weight(name, parts).dense()
    torch.testing.assert_close(dense.double(), (steps * codes - minima).flatten(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", K_TYPES)
def test_parts_survive_packing(name):
    parts = random_parts(name, rows=40)
    weight = k_weight(name, parts)
    assert torch.equal(weight.codes(), parts.codes.to(torch.int8))
    for read, made in zip((*weight.scales(), *weight.factors()), parts[1:], strict=True):
        assert torch.equal(read.to(made.dtype), made)
    assert weight.shape == (40, 2 * SUPERBLOCK) and weight.size_bytes == 40 * 2 * K_TYPES[name].num_bytes
    assert torch.equal(of_bytes(name, weight.data).dense(), weight.dense())
