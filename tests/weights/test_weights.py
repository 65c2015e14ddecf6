import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from evopress.weights.base import from_tensors
from evopress.weights.dense import Dropped, Kept
from evopress.weights.integer import QuantizedWeight, quantized_bytes
from evopress.weights.packing import pack, unpack
from evopress.weights.sparse import SparseWeight, sparse_bytes

ROWS, COLS = 5, 48


def quantized(bits=3, symmetric=False, rows=ROWS, cols=COLS, groups=3):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (rows, cols), generator=generator, dtype=torch.uint8)
    scales = torch.rand(rows, groups, generator=generator).half()
    zeros = torch.randint(0, 2**bits, (rows, groups), generator=generator, dtype=torch.uint8)
    return (
        QuantizedWeight.from_codes(codes, scales, zeros=None if symmetric else zeros, bits=bits),
        codes,
        scales,
        zeros,
    )


def sparse(rows=ROWS, cols=COLS, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, cols, generator=generator).to(dtype)
    kept = torch.rand(rows, cols, generator=generator) > 0.5
    return SparseWeight.from_dense(weight, kept), weight, kept


ALL_KINDS = [
    quantized(2)[0],
    quantized(3)[0],
    quantized(7, symmetric=True)[0],
    sparse()[0],
    sparse(cols=13, dtype=torch.float32)[0],
    Kept(torch.randn(3, 4)),
    Dropped(3, 4),
]


@pytest.mark.parametrize("weight", ALL_KINDS, ids=lambda weight: type(weight).__name__)
def test_a_weight_survives_a_file_and_is_as_long_as_it_says(weight):
    tensors = weight.tensors()
    again = from_tensors(weight.spec(), load(save(tensors)))
    assert type(again) is type(weight) and again.spec() == weight.spec() and again.shape == weight.shape
    assert torch.equal(again.dense(), weight.dense())
    assert weight.size_bytes == again.size_bytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_quantised_weight_is_scale_times_code_minus_zero(bits, symmetric):
    weight, codes, scales, zeros = quantized(bits, symmetric)
    zero = torch.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
    expected = scales.float().repeat_interleave(16, 1) * (codes.float() - zero.float().repeat_interleave(16, 1))
    assert torch.equal(weight.codes(), codes)
    assert torch.equal(weight.dense(), expected)
    assert torch.equal(weight.dense(torch.bfloat16), expected.bfloat16())
    assert weight.group_size == 16 and weight.symmetric == symmetric


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 70), st.integers(1, 9), st.integers(1, 20), st.booleans())
def test_bytes_of_quantised_weights_are_the_bytes_stored(bits, rows, groups, group_size, symmetric):
    weight = quantized(bits, symmetric, rows, groups * group_size, groups)[0]
    formula = quantized_bytes(rows, groups * group_size, bits=bits, group_size=group_size, symmetric=symmetric)
    assert formula == weight.size_bytes == sum(tensor.nbytes for tensor in weight.tensors().values())


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 40))
def test_sparse_weight_keeps_what_the_mask_says_and_nothing_else(rows, cols):
    packed, weight, kept = sparse(rows, cols)
    assert torch.equal(packed.kept(), kept)
    assert torch.equal(packed.dense(), weight.float() * kept)
    assert packed.size_bytes == sparse_bytes(rows, cols, num_kept=int(kept.sum()))


def test_dense_is_a_new_tensor():
    kept = Kept(torch.ones(2, 2))
    kept.dense().zero_()
    assert kept.dense().all()


def test_dropped_is_zeros_and_takes_no_bytes():
    assert not Dropped(2, 3).dense().any() and Dropped(2, 3).size_bytes == 0


GOOD_Q, GOOD_S = quantized(3)[0], sparse()[0]
Q, S = GOOD_Q.tensors(), GOOD_S.tensors()
QUANTIZED, SPARSE = {"kind": "quantized", "bits": 3, "cols": COLS}, {"kind": "sparse", "cols": COLS}


@pytest.mark.parametrize(
    ("spec", "tensors", "reason"),
    [
        ({}, {}, "unknown kind of weight None"),
        ({"kind": "pickle"}, {}, "unknown kind of weight 'pickle'"),
        ({"kind": ["quantized"]}, {}, r"unknown kind of weight \['quantized'\]"),
        (QUANTIZED, {}, "codes is missing"),
        ({**QUANTIZED, "cols": None}, Q, "cols must be an integer"),
        ({**QUANTIZED, "bits": 9}, Q, "bits must be an integer from 2 to 8, not 9"),
        ({**QUANTIZED, "cols": True}, Q, "cols must be an integer from 1 to .*, not True"),
        ({**QUANTIZED, "bits": "3"}, Q, "bits must be an integer from 2 to 8, not '3'"),
        ({**QUANTIZED, "cols": 10**15}, Q, "cols must be an integer from 1 to 6"),
        ({**QUANTIZED, "cols": 10**9}, Q, "codes do not fit scales and columns"),
        ({**QUANTIZED, "cols": COLS - 1}, Q, "3 groups do not divide 47 columns"),
        (QUANTIZED, {**Q, "codes": Q["codes"].float()}, r"codes is .* not a matrix of torch\.int32"),
        (QUANTIZED, {**Q, "codes": Q["codes"][:-1]}, "codes do not fit scales and columns"),
        (QUANTIZED, {**Q, "scales": Q["scales"] * float("nan")}, "scales are not finite"),
        (QUANTIZED, {**Q, "scales": Q["scales"][:, :0]}, "scales is missing or not a matrix"),
        (QUANTIZED, {**Q, "zeros": Q["zeros"][:-1]}, "zero points do not fit scales"),
        (SPARSE, {"bitmask": S["bitmask"]}, "values are missing"),
        (SPARSE, {**S, "values": S["values"][1:]}, "bit mask and values differ in number"),
        (SPARSE, {**S, "values": S["values"].int()}, "values are .* not a list of floats"),
        ({**SPARSE, "cols": COLS + 8}, S, "bit mask does not fit the columns"),
        ({**SPARSE, "cols": COLS - 3}, S, "bits are set beyond the last column"),
        ({"kind": "kept"}, {}, "weight is missing"),
        ({"kind": "kept"}, {"weight": torch.zeros(3)}, "weight is .* not a matrix"),
        ({"kind": "kept"}, {"weight": torch.zeros(3, 3, dtype=torch.int64)}, r"not a matrix of torch\.float16"),
        ({"kind": "dropped", "rows": 10**9, "cols": 10**9}, {}, "larger than any layer"),
        ({"kind": "dropped", "rows": -1, "cols": 4}, {}, "rows must be an integer from 1"),
    ],
)
def test_nonsense_is_refused_for_what_is_wrong_with_it(spec, tensors, reason):
    with pytest.raises(ValueError, match=reason):
        from_tensors(spec, tensors)


@pytest.mark.parametrize("rows", [1, 16])
def test_a_single_column_of_words_is_unpacked_whatever_its_strides(rows):
    codes = torch.randint(0, 8, (rows, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    words = pack(codes, 3)
    assert words.shape == (rows, 1)
    strided = words.as_strided((rows, 1), (1, 16))
    assert torch.equal(strided, words) and strided.is_contiguous()
    assert torch.equal(unpack(strided, 3, cols=8), codes)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_transposed_matrix_is_packed_like_any_other(rows):
    """A row whose elements lie apart in memory counts as contiguous, but its bytes cannot be read as words."""
    columns = torch.randint(8, (32, rows), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codes = columns.t()
    assert torch.equal(unpack(pack(codes, 3), 3, cols=32), codes)
    kept = SparseWeight.from_dense(columns.float().t(), columns.t() > 3)
    assert torch.equal(kept.dense() > 0, codes > 3)


def test_a_sparse_weight_is_read_without_decoding_its_mask(monkeypatch):
    weight = SparseWeight.from_dense(torch.randn(5, 13), torch.randn(5, 13) > 0)
    monkeypatch.setattr(SparseWeight, "_bits", lambda self: pytest.fail("the mask was decoded"))
    assert from_tensors(weight.spec(), weight.tensors()).values.numel() == weight.values.numel()
