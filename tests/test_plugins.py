"""A kind of weight and a compressor from outside the package go through the whole job."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from evopress.compressors.base import CompressedGroup, Compressor, LayerGroup
from evopress.compressors.float import Float
from evopress.compressors.output_errors import dense_levels, relative_errors
from evopress.database.store import Database
from evopress.export import Export
from evopress.inspection.databases import inspect_database
from evopress.pipeline import run_job
from evopress.runtime.config_class import config_class
from evopress.space.budget import Budget, Metric
from evopress.space.settings import SpaceSettings
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights import base
from evopress.weights.base import CompressedWeight, PackedLayer, Spec, register_reader
from evopress.weights.checks import checked_matrix
from evopress.weights.dense import Kept
from tests.jobs import small_job


@dataclass(frozen=True)
class Ternary(CompressedWeight):
    """-1, 0 or 1, times a scale per row. `signs` is int8 (rows, cols), and `scales` float32 (rows, 1)."""

    has_packed_layer: ClassVar[bool] = True

    signs: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.signs.shape[0], self.signs.shape[1]

    @property
    def size_bytes(self) -> int:
        return self.signs.nbytes + self.scales.nbytes

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return (self.signs * self.scales).to(dtype)

    def packed_layer(self) -> PackedLayer:
        arguments = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
        return PackedLayer("int-quantized", arguments, {"weight": self.signs, "weight_scale": self.scales})

    def tensors(self) -> dict[str, Tensor]:
        return {"signs": self.signs, "scales": self.scales}

    def spec(self) -> Spec:
        return {"kind": "ternary"}


def read_ternary(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Ternary:
    signs = checked_matrix(tensors, "signs", dtypes=(torch.int8,))
    return Ternary(signs, checked_matrix(tensors, "scales", dtypes=(torch.float32,)))


@config_class
class KeepOrTernary(Compressor):
    """Two levels: all bits, or signs of the larger weights."""

    metric: ClassVar[Metric] = "bits"
    needs_hessian: ClassVar[bool] = True

    threshold: float = 0.7

    @property
    def weight_kinds(self) -> frozenset[type[CompressedWeight]]:
        return frozenset({Kept, Ternary})

    @property
    def span(self) -> tuple[float, float]:
        return 8.0, 16.0

    @property
    def propagate_level(self) -> int:
        return 1

    def levels(self, layer: LayerShape) -> list[Level]:
        sizes = {"all": 2 * layer.num_weights, "ternary": layer.num_weights + 4 * layer.rows}
        return [Level(label=name, value=size, cost=8 * size, size_bytes=size) for name, size in sizes.items()]

    def compress(self, group: LayerGroup) -> CompressedGroup:
        levels = [[Kept(weight.bfloat16()), self._ternary(weight)] for weight in group.weights]
        return CompressedGroup(levels, relative_errors(dense_levels(levels), group.weights, H=group.hessian))

    def _ternary(self, weight: Tensor) -> Ternary:
        size = weight.abs().mean(1, keepdim=True)
        signs = weight.sign() * (weight.abs() > self.threshold * size)
        kept = (weight.abs() * signs.abs()).sum(1, keepdim=True) / signs.abs().sum(1, keepdim=True)
        return Ternary(signs.to(torch.int8), kept)


pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")


@pytest.fixture
def ternary(monkeypatch) -> None:
    monkeypatch.setattr(base, "_READERS", dict(base._READERS))
    register_reader("ternary")(read_ternary)


COMPRESSORS = {"from outside": KeepOrTernary(), "number formats": Float(levels=("bf16", "fp8", "int8"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressor_and_its_kinds_go_from_the_database_to_a_checkpoint_that_transformers_loads(
    name, ternary, tmp_path, model_folders
):
    job = small_job(
        tmp_path / "run",
        tmp_path,
        model_folders("llama"),
        compress=COMPRESSORS[name],
        budget=Budget(metric="bits", target=12),
        space=SpaceSettings(trade="any", tie="engine"),
        export=Export(formats=["hf", "compressed_tensors"], dtype="float32"),
        stages=("plan", "database", "search", "evaluate"),
    )
    profile = run_job(job)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert 10 < results["budget"]["achieved"] <= 12 and len(set(profile)) > 1
    assert results["searched"]["kl"]["pydoc"] > 0
    (manifest,) = tmp_path.glob("databases/tiny/*/manifest.json")
    assert not inspect_database(manifest.parent).defects
    name = manifest.parent.name.rpartition("-")[0]
    database = Database.open(manifest.parents[1], name, json.loads(manifest.read_text())["identity"])
    folders = [tmp_path / "run/checkpoints" / name for name in ("hf", "compressed_tensors")]
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    models[1](torch.tensor([[1, 2]]))  # compressed-tensors decodes weights at their first use
    for unit in json.loads((tmp_path / "run/profile.json").read_text())["units"]:
        for layer in unit["unit"].split("+"):
            weight = database.read(int(layer.split(".")[2]), layer, unit["level"])
            for model in models:
                assert torch.equal(model.get_submodule(layer).weight, weight.dense())
