"""Number formats: their elements, their exact bytes, and rounding to nearest."""

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from safetensors.torch import load, save
from torch.nn.functional import cosine_similarity

from evopress.weights.base import from_tensors
from evopress.weights.fp4 import MAGNITUDES, pack_fp4, round_to_fp4, unpack_fp4
from evopress.weights.mxfp4 import MXFP4, MXFP4Weight
from evopress.weights.number_formats import (
    NumberFormat,
    ScaleSettings,
    number_formats,
    per_column,
    register_number_format,
)
from evopress.weights.nvfp4 import NVFP4

FP4_NUMBERS = sorted({sign * magnitude for sign, magnitude in product((1, -1), MAGNITUDES)})

SCALED = [name for name in number_formats() if name != "bf16"]


def weights(*rows: int, cols: int = 64, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.02 * torch.randn(count, cols, generator=generator) for count in rows]


def settings(cols: int = 64, **changes) -> ScaleSettings:
    return ScaleSettings(torch.bfloat16, torch.ones(cols), **changes)


def rounded(number_format: NumberFormat, weight: torch.Tensor, scales) -> torch.Tensor:
    by_column = per_column(scales.values, number_format.group_size, cols=weight.shape[1])
    return number_format.round(weight / by_column)


def test_e2m1_rounds_to_the_nearest_number_and_ties_to_the_even_code():
    numbers = torch.tensor(FP4_NUMBERS)
    x = torch.linspace(-8, 8, 6401)
    nearest = (x[:, None] - numbers).abs().amin(1)
    torch.testing.assert_close((round_to_fp4(x) - x).abs(), nearest)
    for low, high in pairwise(MAGNITUDES):
        even = (low, high)[MAGNITUDES.index(high) % 2 == 0]
        middle = torch.tensor([(low + high) / 2, -(low + high) / 2])
        assert round_to_fp4(middle).tolist() == [even, -even]


def test_the_codes_of_e2m1_are_those_of_the_specification():
    """The magnitude is sign · 2^(exponent − 1) · (1 + mantissa / 2), or mantissa / 2 if the exponent is 0."""
    packed = torch.arange(256, dtype=torch.uint8).view(1, 256)
    numbers = unpack_fp4(packed).view(256, 2)
    for byte, place in product(range(256), range(2)):
        code = byte >> 4 * place & 15
        exponent, mantissa = code >> 1 & 3, code & 1
        magnitude = 2 ** (exponent - 1) * (1 + mantissa / 2) if exponent else mantissa / 2
        assert numbers[byte, place] == (-magnitude if code & 8 else magnitude)
    assert torch.equal(unpack_fp4(pack_fp4(unpack_fp4(packed))), unpack_fp4(packed))
    assert pack_fp4(torch.tensor([[-0.0, 0.5]])).item() == 0x10


@pytest.mark.parametrize("name", number_formats())
def test_a_packed_weight_is_its_elements_times_its_scales_and_survives_a_file(name):
    number_format = number_formats()[name]
    layers = weights(6, 130, cols=192)  # not a multiple of the rows and columns of a block
    for weight, scales in zip(layers, number_format.scales(layers, settings(192)), strict=True):
        elements = rounded(number_format, weight, scales)
        packed = number_format.pack(elements, scales)
        by_column = per_column(scales.values, number_format.group_size, cols=192)
        assert isinstance(packed, number_format.kind) and packed.shape == weight.shape
        assert torch.equal(packed.dense(), elements * by_column)
        assert torch.equal(packed.dense(torch.bfloat16), (elements * by_column).bfloat16())
        again = from_tensors(packed.spec(), load(save(packed.tensors())))
        assert type(again) is type(packed) and torch.equal(again.dense(), packed.dense())
        size = number_format.size_bytes(*weight.shape, scale_bytes=2)
        assert packed.size_bytes == size == sum(tensor.nbytes for tensor in packed.tensors().values())


@pytest.mark.parametrize("name", SCALED)
def test_the_largest_weights_of_a_row_or_group_are_hardly_clipped(name):
    """Scales are rounded to their type, so the largest weight may be clipped by as much. MXFP4 rounds 5 to 4.

    INT4 clips the largest weight if that makes the squared error of its group smaller, to 7 / 10 at most.
    """
    number_format = number_formats()[name]
    (weight,) = weights(128, cols=256)
    (scales,) = number_format.scales([weight], settings(256))
    packed = number_format.pack(rounded(number_format, weight, scales), scales)
    groups = [tensor.unflatten(1, (-1, number_format.group_size or 256)) for tensor in (weight, packed.dense())]
    largest, kept = (group.abs().amax(2) for group in groups)
    if name == "fp8_block":
        largest, kept = largest.amax(0), kept.amax(0)
    assert (kept / largest >= {"mxfp4": 0.8, "int4": 0.69}.get(name, 0.93)).all()
    assert (kept / largest <= (1.2 if name == "mxfp4" else 1.07)).all()


@pytest.mark.parametrize("name", number_formats())
@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e20])
def test_zeros_and_extreme_weights_are_finite_and_zeros_stay_zeros(name, factor):
    number_format = number_formats()[name]
    weight = factor * weights(4)[0]
    weight[0] = 0
    (scales,) = number_format.scales([weight], settings())
    dense = number_format.pack(rounded(number_format, weight, scales), scales).dense()
    assert dense.isfinite().all() and not dense[0].any()
    assert factor == 0 or cosine_similarity(dense[1:].double(), weight[1:].double(), eps=0).min() > 0.98


def test_layers_that_read_one_input_have_one_nvfp4_divisor_for_the_largest_of_their_weights():
    first, second = weights(4, 4)
    second *= 3
    by_layer = NVFP4.scales([first, second], settings())
    (alone,) = NVFP4.scales([second], settings())
    divisors = [scales.stored["divisor"] for scales in by_layer]
    assert divisors[0] == divisors[1] == alone.stored["divisor"] == 6 * 448 / second.abs().max()
    assert by_layer[1].stored["scales"].float().max() == 448


NAN = torch.full((4, 4), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)
DAMAGE: list[tuple[str, str, Callable[[torch.Tensor], torch.Tensor], str]] = [
    ("nvfp4", "packed", lambda t: t[:, 1:], "codes do not fit scales"),
    ("nvfp4", "packed", lambda t: t.int(), "packed is missing or not a matrix"),
    ("nvfp4", "scales", lambda t: t.float(), "scales is missing or not a matrix"),
    ("nvfp4", "scales", lambda t: NAN, "scales are not finite"),
    ("nvfp4", "divisor", lambda t: 0 * t, "the divisor is not positive"),
    ("nvfp4", "divisor", lambda t: t.repeat(2), "divisor is missing or not a vector"),
    ("mxfp4", "exponents", lambda t: t[1:], "codes do not fit exponents"),
    ("mxfp4", "exponents", lambda t: t | 255, "exponents are not finite"),
    ("fp8", "scales", lambda t: t[1:], "codes do not fit scales"),
    ("fp8", "scales", lambda t: t * torch.inf, "scales are not finite"),
    ("fp8", "codes", lambda t: t.float(), "codes is missing or not a matrix"),
    ("fp8", "codes", lambda t: NAN, "codes are not finite"),
    ("fp8_block", "scales", lambda t: t.repeat(2, 1), "codes do not fit scales"),
    ("fp8_block", "scales", lambda t: t * torch.nan, "scales are not finite"),
    ("fp8_block", "codes", lambda t: NAN, "codes are not finite"),
]


@pytest.mark.parametrize(("name", "part", "damage", "reason"), DAMAGE)
def test_damaged_weights_are_refused_for_what_is_wrong_with_them(name, part, damage, reason):
    (weight,), number_format = weights(4), number_formats()[name]
    (scales,) = number_format.scales([weight], settings())
    good = number_format.pack(rounded(number_format, weight, scales), scales)
    with pytest.raises(ValueError, match=reason):
        from_tensors(good.spec(), {**good.tensors(), part: damage(good.tensors()[part])})


def errors_of_groups(weight: torch.Tensor, power: torch.Tensor, *, four_over_six: bool) -> torch.Tensor:
    (scales,) = NVFP4.scales([weight], ScaleSettings(torch.bfloat16, power, four_over_six))
    dense = NVFP4.pack(rounded(NVFP4, weight, scales), scales).dense()
    return ((dense - weight).square() * power).unflatten(1, (-1, 16)).sum(2)


def test_four_over_six_maps_the_largest_weight_of_each_group_to_the_better_of_the_two():
    (weight,) = weights(16, cols=128)
    power = torch.linspace(0.1, 3, 128)
    (chosen,) = NVFP4.scales([weight], ScaleSettings(torch.bfloat16, power, True))
    largest = weight.unflatten(1, (-1, 16)).abs().amax(2)
    divisor = chosen.stored["divisor"]
    assert divisor == 6 * 256 / weight.abs().max()
    errors, is_chosen = {}, {}
    for number in (6, 4):
        scales = (largest / number * divisor).to(torch.float8_e4m3fn)
        values = (scales.float() / divisor).repeat_interleave(16, 1)
        change = round_to_fp4(weight / values) * values - weight
        errors[number] = (change.square() * power).unflatten(1, (-1, 16)).sum(2)
        is_chosen[number] = chosen.stored["scales"].float() == scales.float()
    assert is_chosen[6][errors[6] < errors[4]].all() and is_chosen[4][errors[4] < errors[6]].all()
    assert (errors[4] < errors[6]).any() and (errors[4] > errors[6]).any()
    best = errors_of_groups(weight, power, four_over_six=True).sum()
    assert best < 0.9 * errors_of_groups(weight, power, four_over_six=False).sum()


def test_exponents_of_mxfp4_are_those_of_compressed_tensors():
    library = pytest.importorskip("compressed_tensors.quantization.utils.mxfp_utils")
    largest = torch.logspace(-30, 30, 500).view(-1, 1)
    (scales,) = MXFP4.scales([largest * torch.linspace(-1, 1, 32)], settings(32))
    assert torch.equal(scales.stored["exponents"].float(), library.generate_mx_scales(largest))


def test_the_powers_of_mxfp4_are_exact_over_the_whole_range():
    exponents = torch.arange(255, dtype=torch.uint8).view(1, -1)
    packed = torch.full((1, 255 * 16), 0x22, dtype=torch.uint8)  # the number 1
    expected = torch.tensor([2.0 ** (exponent - 127) for exponent in range(255)], dtype=torch.float64)
    assert torch.equal(MXFP4Weight(packed, exponents).dense()[0, ::32].double(), expected)


def test_a_name_belongs_to_one_format():
    class Other(NumberFormat):
        size_bytes = scales = round = pack = None

    with pytest.raises(ValueError, match=r"'nvfp4' is already the name of _NVFP4"):
        register_number_format("nvfp4", Other())


def test_the_scale_of_int4_loses_no_more_than_the_one_that_clips_nothing():
    (weight,) = weights(64, cols=256)
    power = torch.linspace(0.1, 10, 256)
    chosen = number_formats()["int4"].scales([weight], ScaleSettings(torch.float32, power))[0].values
    unclipped = weight.unflatten(1, (-1, 64)).abs().amax(2) / 7
    errors = []
    for values in (chosen, unclipped):
        by_column = per_column(values, 64, cols=256)
        change = number_formats()["int4"].round(weight / by_column) * by_column - weight
        errors.append((power * change**2).unflatten(1, (-1, 64)).sum(2))
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert errors[0].sum() < 0.95 * errors[1].sum()
