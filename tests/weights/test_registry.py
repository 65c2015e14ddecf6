"""The registry of kinds: it reads what has registered itself, and imports nothing because a file asks for it."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from evopress.weights import base
from evopress.weights.base import Spec, from_tensors, register_reader
from evopress.weights.checks import checked_matrix
from evopress.weights.dense import Kept


class Float8Weight(Kept):
    """A kind from outside the package."""

    def spec(self) -> Spec:
        return {"kind": "float8"}


def read_float8(spec, tensors) -> Float8Weight:
    return Float8Weight(checked_matrix(tensors, "weight", dtypes=(torch.float8_e4m3fn,)))


@pytest.fixture(autouse=True)
def separate_registry(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(base, "_READERS", dict(base._READERS))
    yield


def test_a_kind_from_outside_the_package_is_read_once_it_is_registered():
    weight = Float8Weight(torch.randn(3, 4).to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match=r"unknown kind of weight 'float8'.*once its module is imported"):
        from_tensors(weight.spec(), weight.tensors())
    register_reader("float8")(read_float8)
    again = from_tensors(weight.spec(), weight.tensors())
    assert isinstance(again, Float8Weight)
    assert torch.equal(again.dense(), weight.dense())


def test_a_kind_has_one_reader_but_its_module_may_be_reloaded():
    register_reader("float8")(read_float8)
    register_reader("float8")(read_float8)
    with pytest.raises(ValueError, match=r"kind 'sparse' are read by evopress.weights.sparse.*choose another kind"):
        register_reader("sparse")(read_float8)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="expected one of dropped, fp8, fp8_block, ggml, kept, mxfp4, nvfp4, quantized, sparse"
    ):
        from_tensors({"kind": "os"}, {})


@pytest.mark.slow
def test_importing_the_contract_alone_registers_all_kinds_of_the_package():
    code = (
        "from evopress.weights.base import from_tensors\n"
        "assert from_tensors({'kind': 'dropped', 'rows': 2, 'cols': 3}, {}).shape == (2, 3)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
