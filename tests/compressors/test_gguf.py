"""Levels that are ggml block types: their bytes are those of the gguf package, their numbers those of GPTQ."""

import pytest
import torch

from evopress.compressors.gguf import GGUF
from evopress.space.shapes import LayerShape
from evopress.weights.base import from_tensors
from evopress.weights.block_grids import BLOCK, TYPES, fit_blocks
from evopress.weights.ggml import GgmlWeight, bits_per_weight, read_ggml
from evopress.weights.k_types import K_TYPES
from tests.groups import group, with_hessian

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

NAMES = tuple(TYPES)
ALL = (*TYPES, *K_TYPES)


def kind(name: str):
    return gguf.GGMLQuantizationType[name]


def weight(rows: int = 24, cols: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ALL)
def test_the_gguf_package_decodes_our_bytes_to_our_weights_bit_for_bit(name):
    for level, of_type in zip(*compressed(GGUF(types=(name,)), group((24,), 256)), strict=True):
        decoded = gguf.dequantize(level.data.numpy(), kind(of_type))
        assert torch.equal(torch.from_numpy(decoded), level.dense())


def compressed(compressor: GGUF, layers) -> tuple[list, tuple[str, ...]]:
    return compressor.compress(layers).levels[0], compressor.types


@pytest.mark.parametrize("name", NAMES)
def test_we_decode_the_bytes_of_the_gguf_package_bit_for_bit(name):
    data = gguf.quantize(weight().numpy(), kind(name))
    ours = GgmlWeight(torch.from_numpy(data), name)
    assert torch.equal(ours.dense(), torch.from_numpy(gguf.dequantize(data, kind(name))))
    assert ours.shape == (24, 128)
    assert ours.size_bytes == data.nbytes


@pytest.mark.parametrize("name", NAMES)
def test_codes_survive_packing(name):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(TYPES[name].low, TYPES[name].high + 1, (6, 96), generator=generator, dtype=torch.int16)
    scales, offsets = torch.rand(6, 3, generator=generator), torch.rand(6, 3, generator=generator)
    packed = GgmlWeight.from_codes(codes, scales, offsets=offsets, type_name=name)
    assert torch.equal(packed.codes(), codes)
    assert packed.size_bytes == 6 * 3 * TYPES[name].num_bytes


@pytest.mark.parametrize("name", NAMES)
def test_a_block_type_has_the_size_that_ggml_gives_it(name):
    assert (BLOCK, TYPES[name].num_bytes) == gguf.GGML_QUANT_SIZES[kind(name)]


@pytest.mark.parametrize("name", NAMES)
def test_rounding_is_as_close_as_the_reference_quantiser(name):
    """With the identity as the Hessian there is nothing to correct. The reference uses scales before rounding them."""
    layers = group((24,), 128)
    layers = with_hessian(layers, torch.eye(128))
    (level,), _ = compressed(GGUF(types=(name,)), layers)
    reference = torch.from_numpy(gguf.dequantize(gguf.quantize(layers.weights[0].numpy(), kind(name)), kind(name)))
    ours, theirs = (float((dense - layers.weights[0]).square().mean()) for dense in (level.dense(), reference))
    assert ours <= 1.001 * theirs


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_on_the_nearest_point_of_its_grid_when_the_hessian_is_the_identity(name):
    layers = with_hessian(group((8,), 64), torch.eye(64))
    (level,), _ = compressed(GGUF(types=(name,)), layers)
    block = layers.weights[0][:, :BLOCK]
    scale = level.data[:, 0:2].contiguous().view(torch.float16).float()
    offset = level.data[:, 2:4].contiguous().view(torch.float16).float() if TYPES[name].has_offset else 0.0
    points = scale * torch.arange(TYPES[name].low, TYPES[name].high + 1) + offset  # (rows, codes)
    nearest = (block.unsqueeze(2) - points.unsqueeze(1)).abs().amin(2)
    torch.testing.assert_close((level.dense()[:, :BLOCK] - block).abs(), nearest, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_the_output_error_is_below_that_of_rounding(name, act_order):
    layers = group((24,), 256)
    (level,), _ = compressed(GGUF(types=(name,), act_order=act_order), layers)
    (rounded,), _ = compressed(GGUF(types=(name,)), with_hessian(layers, layers.hessian.diagonal().diag()))

    def error(dense: torch.Tensor) -> float:
        W, change = layers.weights[0], dense - layers.weights[0]
        return float((change @ layers.hessian * change).sum() / (W @ layers.hessian * W).sum())

    assert error(level.dense()) < 0.8 * error(rounded.dense())


def test_all_types_solved_together_equal_each_alone():
    layers = group((16, 8), 256, dtype=torch.float64)
    compressor = GGUF(types=("Q8_0", "Q5_1", "Q4_K", "Q3_K"))
    together = compressor.compress(layers)
    for index, name in enumerate(compressor.types):
        alone = GGUF(types=(name,)).compress(layers)
        for layer in range(2):
            assert torch.equal(together.levels[layer][index].data, alone.levels[layer][0].data)
            assert together.errors[layer][index] == pytest.approx(alone.errors[layer][0], rel=1e-4)


def test_errors_are_the_share_of_output_energy_lost():
    layers = group((16,), 96)
    solved = GGUF().compress(layers)
    whole = (layers.weights[0] @ layers.hessian * layers.weights[0]).sum()
    for level, error in zip(solved.levels[0], solved.errors[0], strict=True):
        change = level.dense() - layers.weights[0]
        assert error == pytest.approx(float((change @ layers.hessian * change).sum() / whole), rel=1e-2)


def test_more_bytes_lose_less():
    errors = GGUF().compress(group((64,), 128)).errors[0]
    assert errors[0] == min(errors)
    assert errors[-1] == max(errors)


def test_levels_have_the_exact_bytes_of_the_weights():
    compressor = GGUF()
    levels = compressor.levels(LayerShape("layer0", 24, 128))
    solved, _ = compressed(compressor, group((24,), 128))
    assert [level.label for level in levels] == ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]
    assert [level.size_bytes for level in levels] == [weight.size_bytes for weight in solved]
    assert [level.cost for level in levels] == [8 * level.size_bytes for level in levels]
    assert [level.value for level in levels] == [8.5, 6, 5.5, 5, 4.5]


def test_zeros_stay_zeros():
    layers = group((4,), 64)
    layers.weights[0].zero_()
    for level in GGUF().compress(layers).levels[0]:
        assert not level.dense().any()


def test_a_dead_hessian_is_rounded_to_nearest_and_noted():
    layers = with_hessian(group((8,), 64), torch.zeros(64, 64))
    solved = GGUF().compress(layers)
    assert any("rounded to nearest" in note for note in solved.notes)
    torch.testing.assert_close(solved.levels[0][0].dense(), layers.weights[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("factor", "is_flagged"), [(1.0, False), (1e-9, True), (1e8, True)])
def test_weights_beyond_the_reach_of_float16_scales_are_noted(factor, is_flagged):
    layers = group((4,), 64)
    layers.weights[0].mul_(1e-3)
    layers.weights[0][1] *= factor * 1e3
    for name in NAMES:
        notes = GGUF(types=(name,)).compress(with_hessian(layers, torch.eye(64))).notes
        assert bool(notes) == is_flagged, name
        assert all(note.startswith(f"layer0: 2 blocks of {name} are outside") for note in notes)


def test_columns_that_are_never_used_are_not_noted():
    layers = group((4,), 64)
    H = layers.hessian.clone()
    H[:32], H[:, :32] = 0, 0
    assert not any("outside" in note for note in GGUF().compress(with_hessian(layers, H)).notes)


def test_constant_and_one_sided_blocks_fit_their_grid():
    columns = torch.stack([torch.full((BLOCK,), 3.0), torch.linspace(1, 2, BLOCK), -torch.linspace(1, 2, BLOCK)], 1)
    for name in NAMES:
        grid = fit_blocks(columns, [TYPES[name]])
        decoded = grid.decode(grid.encode(columns))
        assert float((decoded - columns).abs().max()) <= 3 / 15


def test_weights_survive_a_file():
    for level in GGUF().compress(group((8,), 64)).levels[0]:
        again = from_tensors(level.spec(), level.tensors())
        assert isinstance(again, GgmlWeight)
        assert torch.equal(again.data, level.data)
        assert again.type_name == level.type_name


@pytest.mark.parametrize(
    ("spec", "data", "message"),
    [
        ({"type": "IQ1_S"}, torch.zeros(2, 50, dtype=torch.uint8), "expected one of Q8_0"),
        ({"type": "Q3_K"}, torch.zeros(2, 18, dtype=torch.uint8), "not whole blocks of Q3_K"),
        ({"type": "Q4_0"}, torch.zeros(2, 18), "matrix of bytes"),
        ({"type": "Q4_0"}, torch.zeros(2, 17, dtype=torch.uint8), "not whole blocks of Q4_0"),
    ],
)
def test_damaged_weights_are_refused(spec, data, message):
    with pytest.raises(ValueError, match=message):
        read_ggml(spec, {"data": data})


def test_wrong_types_and_widths_are_refused():
    with pytest.raises(ValueError, match="must be different types"):
        GGUF(types=("Q4_0", "Q4_0"))
    with pytest.raises(ValueError, match="multiple of 32"):
        GGUF().levels(LayerShape("layer0", 8, 48))


def test_the_next_block_is_calibrated_on_the_named_type_or_a_larger_one():
    assert GGUF().types[GGUF().propagate_level] == "Q4_0"
    assert [level.label for level in GGUF().levels(WIDE)][GGUF().propagate_level_of(WIDE)] == "Q4_K"
    assert GGUF(types=("Q8_0", "Q5_0")).propagate_level == 1
    assert GGUF(types=("Q5_0", "Q4_0"), propagate_type="Q8_0").propagate_level == 0


@pytest.mark.parametrize("name", K_TYPES)
def test_errors_of_k_types_are_weighed_by_the_inputs(name):
    layers = with_hessian(
        group((24,), 256),
        torch.logspace(0, 2, 256)[torch.randperm(256, generator=torch.Generator().manual_seed(0))].diag(),
    )
    compressor = GGUF(types=(name,))
    solved = compressor.compress(layers)
    (level,) = solved.levels[0]
    assert level.shape == (24, 256) and level.type_name == name
    assert level.size_bytes == 24 * gguf.GGML_QUANT_SIZES[kind(name)][1]
    assert compressor.levels(LayerShape("layer0", 24, 256))[0].size_bytes == level.size_bytes
    again = from_tensors(level.spec(), level.tensors())
    assert torch.equal(again.dense(), level.dense())

    def error(dense: torch.Tensor) -> float:
        return float(((dense - layers.weights[0]).square() * layers.hessian.diagonal()).sum())

    (plain,) = compressed(compressor, with_hessian(layers, torch.eye(256)))[0]
    assert error(level.dense()) < error(plain.dense())


WIDE, NARROW = LayerShape("down", 8, 512), LayerShape("q", 8, 576)


def test_wide_layers_reach_from_2_6_to_8_5_bits_and_others_from_4_5():
    assert {level.label: level.value for level in GGUF().levels(WIDE)} == {
        "Q8_0": 8.5,
        "Q6_K": 6.5625,
        "Q5_K": 5.5,
        "Q4_K": 4.5,
        "Q3_K": 3.4375,
        "Q2_K": 2.625,
    }
    assert [level.label for level in GGUF().levels(NARROW)] == ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]
    assert GGUF().span == (2.625, 8.5)


@pytest.mark.parametrize("cols", [512, 576])
def test_every_level_of_a_layer_is_smaller_than_the_one_before_and_loses_more(cols):
    layers = group((32,), cols)
    sizes = [level.size_bytes for level in GGUF().levels(layers.shapes[0])]
    assert sizes == sorted(set(sizes), reverse=True)
    (errors,) = GGUF().compress(layers).errors
    assert errors == sorted(set(errors))


@pytest.mark.parametrize(("k_type", "others"), [("Q4_K", ("Q4_0", "Q4_1")), ("Q5_K", ("Q5_0", "Q5_1"))])
def test_the_types_that_a_k_type_replaces_lose_more_for_their_size(k_type, others):
    """A bit more per weight divides the error by four."""
    layers = group((32,), 512)
    ((of_k_type,),) = GGUF(types=(k_type,)).compress(layers).errors
    for other in others:
        assert other not in [level.label for level in GGUF(types=(k_type, other)).levels(layers.shapes[0])]
        ((error,),) = GGUF(types=(other,)).compress(layers).errors
        more_bits = bits_per_weight(other) - bits_per_weight(k_type)
        assert error * 4**more_bits > 1.1 * of_k_type


def test_a_layer_has_the_types_that_its_rows_allow():
    compressor = GGUF(types=("Q8_0", "Q6_K", "Q4_0", "Q3_K"), propagate_type="Q3_K")
    assert [level.label for level in compressor.levels(WIDE)] == ["Q8_0", "Q6_K", "Q4_0", "Q3_K"]
    assert [level.label for level in compressor.levels(NARROW)] == ["Q8_0", "Q4_0"]
    assert compressor.propagate_level_of(WIDE) == 3
    assert compressor.propagate_level_of(NARROW) == 1
    solved = compressor.compress(group((8,), 512))
    assert [level.type_name for level in solved.levels[0]] == ["Q8_0", "Q6_K", "Q4_0", "Q3_K"]
    assert sorted(solved.errors[0]) == solved.errors[0]
    with pytest.raises(ValueError, match="multiple of 256: add Q4_0"):
        GGUF(types=("Q6_K",)).levels(NARROW)
