"""A profile that is written and read is the same; a file that is no profile of the model is a ValueError."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evopress.space.profile_files import from_json, from_text, to_json, to_text
from evopress.space.units import Level, Profile, Space, Unit
from tests.spaces import bit_space, block_space, drop_space, sparse_space


def tied_space() -> Space:
    """Units of two layers, as inference engines want them."""
    levels = tuple(Level(label=f"{b}bit", value=b, cost=20 * b, size_bytes=b) for b in (4, 3, 2))
    units = [
        Unit(name=f"q{i}+k{i}", blocks=(i,), kind="q+k", layers=(f"q{i}", f"k{i}"), num_weights=20, levels=levels)
        for i in range(3)
    ]
    return Space(tuple(units))


def space_of_formats() -> Space:
    """Two levels have the same value."""
    sizes = {"bf16": 16, "fp8": 8, "int8": 8, "nvfp4": 4.5}
    levels = tuple(
        Level(label=name, value=bits, cost=int(20 * bits), size_bytes=int(bits)) for name, bits in sizes.items()
    )
    units = [
        Unit(name=f"q{i}", blocks=(i,), kind="q", layers=(f"q{i}",), num_weights=20, levels=levels) for i in range(3)
    ]
    return Space(tuple(units))


SPACES = {
    "formats": space_of_formats(),
    "bits": bit_space([10, 20, 10, 30]),
    "tied": tied_space(),
    "sparsity": sparse_space(3),
    "subblock": drop_space(4),
    "block": block_space("block"),
    "pair": block_space("pair"),
    "protected": block_space("subblock", keep_mlp=(1, 2)),
}


@st.composite
def choices(draw) -> tuple[Space, Profile]:
    space = SPACES[draw(st.sampled_from(sorted(SPACES)))]
    return space, tuple(draw(st.integers(0, len(unit.levels) - 1)) for unit in space.units)


@given(choices())
def test_a_profile_that_is_written_and_read_is_the_same(choice):
    space, profile = choice
    assert from_text(space, to_text(space, profile)) == profile
    assert from_json(space, to_json(space, profile, budget="3 bits", seed=5)) == profile


def test_the_text_has_the_format_of_the_authors():
    assert to_text(bit_space([1, 1]), (0, 2)) == "layer0: 4\nlayer1: 2\n"
    assert to_text(SPACES["tied"], (1, 0, 2)).splitlines()[:3] == ["q0: 3", "k0: 3", "q1: 4"]
    assert to_text(drop_space(4), (0, 0, 1, 0, 0, 1, 1, 1)) == "none\nattn\nmlp\nattn+mlp\n"
    assert to_text(block_space("pair"), (1, 0)) == "attn+mlp\nattn+mlp\nnone\nnone\n"
    assert to_text(SPACES["formats"], (1, 2, 3)) == "q0: fp8\nq1: int8\nq2: 4.5\n"
    assert to_text(sparse_space(1), (0, 4)) == "0.q: 0.3\n0.o: 0.7\n"


def test_the_json_holds_the_chosen_levels_and_their_costs():
    written = json.loads(to_json(bit_space([8, 16]), (0, 2), seed=5))
    assert written["seed"] == 5 and written["cost"] == 4 * 8 + 2 * 16
    assert written["units"][1] == {"unit": "layer1", "level": 2, "label": "2bit", "cost": 32, "size_bytes": 4}


def test_blank_lines_spaces_and_other_number_formats_are_accepted():
    assert from_text(bit_space([1, 1]), "\n  layer1 :2.0 \n\nlayer0: 4e0\n") == (0, 2)


def test_a_level_may_be_given_by_its_label_but_not_by_a_value_that_two_levels_have():
    assert from_text(SPACES["formats"], "q0: nvfp4\nq1: bf16\nq2: 4.5\n", uniform=(0, 0, 0)) == (3, 0, 3)
    with pytest.raises(ValueError, match=r"q2 has no level 8; it has 16, fp8, int8, 4\.5$"):
        from_text(SPACES["formats"], "q0: nvfp4\nq1: bf16\nq2: 8\n")


def test_steps_of_sparsity_count_from_the_given_profile():
    space = sparse_space(1)
    assert from_text(space, "0.q: -1\n0.o: 2\n", uniform=(2, 2)) == (1, 4)
    with pytest.raises(ValueError, match="levels 0 to 4, not 5"):
        from_text(space, "0.q: -1\n0.o: 3\n", uniform=(2, 2))


BAD_LINES = {
    "": "needs exactly one level",
    "layer0: 4": "layer1 needs exactly one level",
    "layer0: 4\nlayer1: 2\nlayer0: 4": "line 3.*given twice",
    "layer0: 4\nlayer1: 2\nlayer2: 2": "no layer 'layer2'",
    "layer0: 4\nlayer1: 5": "layer1 has no level 5; it has 4, 3, 2",
    "layer0: 4\nlayer1: -2": "layer1 has no level -2",
    "layer0: 4\nlayer1: nan": "layer1 has no level nan",
    "layer0: 4\nlayer1: inf": "layer1 has no level inf",
    "layer0: 4\nlayer1: 1e400": "layer1 has no level",
    "layer0: 4\nlayer1:": "line 2.*is not",
    "layer0: 4\nlayer1 2": "line 2.*is not",
    "layer0: 4\nlayer1: two": "line 2.*is not",
    "\x00": "line 1.*is not",
    "attn+mlp\nnone": "line 1.*is not",
}


@pytest.mark.counts("hostile files")
@pytest.mark.parametrize("text", BAD_LINES)
def test_a_text_that_is_no_profile_of_the_model_is_rejected(text):
    with pytest.raises(ValueError, match=BAD_LINES[text]):
        from_text(bit_space([1, 1]), text)
    with pytest.raises(ValueError, match=r"level|layer"):
        from_text(bit_space([1, 1]), text, uniform=(1, 1))


def test_tied_layers_must_have_the_same_level():
    lines = to_text(SPACES["tied"], (0, 0, 0))
    with pytest.raises(ValueError, match=r"q1\+k1 needs exactly one level, but the profile gives \[3\.0, 4\.0\]"):
        from_text(SPACES["tied"], lines.replace("k1: 4", "k1: 3"))
    with pytest.raises(ValueError, match=r"q1\+k1 needs exactly one level"):
        from_text(SPACES["tied"], lines.replace("k1: 4\n", ""))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("subblock", "none\nnone\nnone\n", "3 lines but the model has 4 blocks"),
        ("subblock", "none\nnone\nnone\nnone\nnone\n", "5 lines but the model has 4 blocks"),
        ("subblock", "none\nnone\nnone\nmlp+attn\n", "line 4.*is not one of none, attn, mlp"),
        ("subblock", "layer0: 4\n", "line 1.*is not one of"),
        ("block", "none\nattn\nnone\nnone\n", "can only be dropped as a whole"),
        ("pair", "attn+mlp\nnone\nnone\nnone\n", "can only be dropped as a whole"),
        ("protected", "none\nmlp\nnone\nnone\n", r"is to be kept.*compress\.keep_mlp"),
    ],
)
def test_a_text_of_dropped_parts_that_is_no_profile_of_the_model_is_rejected(name, text, message):
    with pytest.raises(ValueError, match=message):
        from_text(SPACES[name], text)


def entries(*levels: object, names: tuple[object, ...] = ("layer0", "layer1")) -> str:
    return json.dumps({"units": [{"unit": n, "level": level} for n, level in zip(names, levels, strict=True)]})


BAD_JSON = {
    "": "not a profile",
    "[]": "not a profile",
    "{}": "not a profile",
    "null": "not a profile",
    "5": "not a profile",
    '{"units": 5}': "not a profile",
    '{"units": {"layer0": 0, "layer1": 0}}': "not a profile",
    '{"units": ["layer0", "layer1"]}': "not a profile",
    '{"units": [{"unit": "layer0"}, {"unit": "layer1"}]}': "not a profile",
    '{"units": [{"unit": [], "level": 0}]}': "not a profile",
    '{"units": []}': "missing",
    "[" * 200_000: "not a profile",
    '{"units": ' * 200_000: "not a profile",
    '{"units": [], "units": []}': "given twice",
    entries(0, names=("layer0",)): r"another model: missing \['layer1'\]",
    entries(0, 1, 2, names=("layer0", "layer1", "layer2")): "another model",
    entries(0, 1, 1, names=("layer0", "layer1", "layer1")): "given twice",
    entries(0, True): "integer",
    entries(0, 1.0): "integer",
    entries(0, "1"): "integer",
    entries(0, None): "integer",
    entries(0, [1]): "integer",
    entries(0, float("nan")): "integer",
    entries(0, float("inf")): "integer",
    entries(0, -1): "levels 0 to 2, not -1",
    entries(0, 3): "levels 0 to 2, not 3",
    entries(0, 10**300): "levels 0 to 2",
    '{"units": [{"unit": "layer0", "level": 1' + "0" * 10_000 + "}]}": "not a profile",
}


@pytest.mark.counts("hostile files")
@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: text[:60])
def test_json_that_is_no_profile_of_the_model_is_rejected(text):
    with pytest.raises(ValueError, match=BAD_JSON[text]):
        from_json(bit_space([1, 1]), text)


def test_unknown_units_with_names_of_different_types_are_rejected():
    with pytest.raises(ValueError, match="another model"):
        from_json(bit_space([1, 1]), entries(0, 1, 2, 0, names=("layer0", "layer1", 5, "x")))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["layer0", "unit", "level"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["units", "unit", "level", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@pytest.mark.counts("hostile files")
@given(st.one_of(JSON, JSON.map(lambda value: {"units": value}), st.lists(JSON).map(lambda value: {"units": value})))
def test_any_json_is_a_profile_or_a_value_error(value):
    space = bit_space([1, 1])
    with suppress(ValueError):
        space.check(from_json(space, json.dumps(value)))


@pytest.mark.counts("hostile files")
@given(st.text() | st.lists(st.sampled_from(["layer0", "layer1", ":", " ", "4", "2", "-", "\n", "nan"])).map("".join))
def test_any_text_is_a_profile_or_a_value_error(text):
    for space in (bit_space([1, 1]), drop_space(2)):
        for zero in (None, (0, 0)):
            with suppress(ValueError):
                space.check(from_text(space, text, zero))
