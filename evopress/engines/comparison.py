"""Measures the dense, the uniform and the exported model of a run in an engine."""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from evopress.engines.checks import loaded_format
from evopress.engines.known import ENGINES
from evopress.engines.program import EngineError, python_of, run_program
from evopress.evaluation.eval_settings import Eval
from evopress.export import Export, Format, SearchedModel, UnsupportedExportError
from evopress.export.registry import chosen_formats
from evopress.models.pretrained import quiet_transformers
from evopress.runtime.files import remove_leftovers
from evopress.space.units import Space

log = logging.getLogger(__name__)

Measurements = dict[str, float | str | None]


@dataclass(frozen=True, kw_only=True)
class EngineComparison:
    """Measures models on token `windows`, in the engine of the settings.

    Checkpoints of the dense and the uniform model are written into `scratch`, and deleted after they are measured.
    """

    settings: Eval
    export: Export
    windows: Int[Tensor, "windows time"]
    scratch: Path

    @property
    def engine(self) -> str:
        assert self.settings.engine is not None
        return self.settings.engine

    @property
    def checkpoint_format(self) -> Format:
        """The format of the compressed models."""
        return loaded_format(self.engine, self.export)

    def measure(self, name: str, exported: Path, *, uniform: SearchedModel) -> dict[str, Any]:
        """The entry `engine` of `results.json`.

        Args:
            name: Name of the exported model in the results.
            exported: Folder that contains a folder for each exported format.
            uniform: The model to compare it with. The dense model is measured too.
        """
        dense = replace(uniform, space=Space(()), profile=(), weights=None)
        models = {
            "dense": self._measure_unwritten("dense", dense, self._dense_format()),
            "uniform": self._measure_unwritten("uniform", uniform, self.checkpoint_format),
            name: self._measure_folder(name, exported / self.checkpoint_format.name, self.checkpoint_format),
        }
        return {
            "engine": self.engine,
            "format": self.checkpoint_format.name,
            "threads": torch.get_num_threads(),
            "tokens": self.windows.numel(),
            "models": models,
        }

    def _dense_format(self) -> Format:
        name = self.checkpoint_format.dense_format
        (dense_format,) = chosen_formats(replace(self.export, formats=[name], embeddings=None))
        return dense_format

    def _measure_unwritten(self, name: str, model: SearchedModel, checkpoint_format: Format) -> Measurements:
        """Write a checkpoint, measure it and delete it. It is not verified."""
        remove_leftovers(self.scratch, ".engine-*")
        with tempfile.TemporaryDirectory(prefix=".engine-", dir=self.scratch) as folder:
            try:
                if model.profile:
                    checkpoint_format.check_profile(model)
            except UnsupportedExportError as error:
                return {"error": str(error)}
            with quiet_transformers():
                dtype = self.export.dtype_or(checkpoint_format.default_dtype(model))
                checkpoint_format.write(model, Path(folder), dtype=dtype)
            return self._measure_folder(name, Path(folder), checkpoint_format)

    def _measure_folder(self, name: str, folder: Path, checkpoint_format: Format) -> Measurements:
        title = ENGINES[self.engine].title
        log.info("measuring the %s model in %s", name, title)
        weights = [file for pattern in ("*.safetensors", "*.gguf") for file in folder.glob(pattern)]
        request: Mapping[str, object] = {
            "path": str(checkpoint_format.path_for_engine(folder)),
            "windows": self.windows.tolist(),
            "threads": torch.get_num_threads(),
            "trust_remote_code": checkpoint_format.ships_code,
        }
        try:
            measured = run_program(python_of(self.settings), self.engine, request)
        except EngineError as error:
            log.warning("%s could not measure the %s model: %s", title, name, error)
            measured = {"error": str(error)}
        return {"size_bytes": sum(file.stat().st_size for file in weights), **measured}
