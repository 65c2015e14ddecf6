"""The contract of a checkpoint format."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.planned import PlannedModel
from evopress.export.searched import SearchedModel
from evopress.export.settings import Export
from evopress.export.state import SAFETENSORS_ENTRY_BYTES, untied_tensors
from evopress.models.family_match import expert_of
from evopress.models.structure import ModelStructure
from evopress.space.settings import SpaceSettings


class UnsupportedExportError(ValueError):
    """A format cannot hold the model, so nothing is written. The message says why, and what to change."""


class Format(ABC):
    """Writes a checkpoint for some engine, and reads it back.

    The methods are called in this order: `check_settings` at start-up; `check_model` when the model's configuration and
    tokenizer are read, but not yet its weights; `check_profile` after the search, before anything is written; `write`;
    and `load`, whose model is compared with the searched one.

    An example in a package of your own, chosen by `export.formats=[my_format.MyFormat]`::

        @register_format
        class MyFormat(DenseSafetensors):
            name = "mine"
            title = "dense safetensors for my engine"

            def write(self, searched, folder, *, dtype):
                super().write(searched, folder, dtype=dtype)
                (folder / "engine.json").write_text("{}")
    """

    name: ClassVar[str]
    """Its name in `export.formats`, and the name of the checkpoint's folder."""

    title: ClassVar[str]
    """A description for the model card."""

    packs_levels: ClassVar[bool] = False
    """Whether levels are stored in packed form, with the sizes that the space gives. Dense formats decode them."""

    cache_types: tuple[str, ...] = ("f16", "bf16", "fp8")
    """The types of `CACHE_TYPES` that its engine has for the cache of keys and values. The default is those of vLLM."""

    commands: tuple[str, ...]
    """Shell commands that load the checkpoint, with a placeholder `{folder}`."""

    library: str = "transformers"
    """The library that the hub suggests for loading the checkpoint."""

    tags: ClassVar[tuple[str, ...]] = ()
    """Tags under which the hub finds the format."""

    remark: str = ""
    """What users should know when they load the checkpoint, for the model card."""

    engines: tuple[str, ...] = ()
    """The values of `eval.engine` that can measure a checkpoint of the format."""

    dense_format: ClassVar[str] = "hf"
    """The format in which the same engine loads the dense model, to compare the two."""

    ships_code: ClassVar[bool] = False
    """Whether the format writes code into the checkpoint, which engines have to trust."""

    @classmethod
    def from_settings(cls, settings: Export) -> Self:
        """Create the format with the settings that concern it."""
        return cls()

    @classmethod
    def recognizes(cls, folder: Path, config: Mapping[str, object]) -> bool:
        """Whether a folder, whose config.json is `config`, holds a checkpoint that only this format can read."""
        return False

    @abstractmethod
    def check_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        """Raise UnsupportedExportError for settings with which no profile can be exported. No model is loaded yet."""

    def check_model(self, planned: PlannedModel) -> None:
        """Raise UnsupportedExportError if some profile of the model cannot be exported. The model has no weights yet.

        Building a database takes hours, so everything that can be refused here must not be left to `check_profile`.
        """
        return None

    @abstractmethod
    def check_profile(self, searched: SearchedModel) -> None:
        """Raise UnsupportedExportError if the engine cannot run the searched model."""

    def hub_commands(self, repository: str) -> list[str]:
        """Shell commands that load the checkpoint from a repository of the hub, by its id in place of a folder."""
        return [command.format(folder=repository) for command in self.commands]

    def default_dtype(self, searched: SearchedModel) -> torch.dtype:
        """The 16-bit type of the tensors that are not packed, for `export.dtype=auto`."""
        return searched.lm.dtype if searched.lm.dtype.itemsize == 2 else torch.bfloat16

    def as_stored(self, name: str, tensor: Tensor, *, searched: SearchedModel, dtype: torch.dtype) -> Tensor:
        """The values that the checkpoint stores for a tensor of the searched model. Packed layers are not rounded."""
        return tensor.to(dtype)

    @abstractmethod
    def predicted_bytes(self, searched: SearchedModel, dtype: torch.dtype) -> int:
        """Bytes of all tensors that `write` will write, without headers, computed from the sizes in the space."""

    def original_names(self, searched: SearchedModel) -> dict[str, str]:
        """Maps the name of every tensor in the loaded model to its name in the searched model."""
        return searched.renumbered({name: name for name in untied_tensors(searched.lm.model)})

    def predicted_names(self, searched: SearchedModel) -> list[str]:
        """Names of the tensors that `write` will write, or other names of the same length."""
        return list(untied_tensors(searched.lm.model))

    def predicted_header_bytes(self, searched: SearchedModel) -> int:
        """An estimate of the bytes of the weight files that are not tensors."""
        return sum(len(name) + SAFETENSORS_ENTRY_BYTES for name in self.predicted_names(searched))

    @abstractmethod
    def write(self, searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> None:
        """Write everything that an engine needs into an empty folder."""

    @abstractmethod
    def load(self, folder: Path, dtype: torch.dtype, *, attention: str | None = None) -> PreTrainedModel:
        """Load a written checkpoint to compute in `dtype`, with the engine's own loader if it is installed."""

    def path_for_engine(self, folder: Path) -> Path:
        """The folder or the file that engines are told to load."""
        return folder

    def check_files(self, searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> dict[str, object]:
        """Compare the contents of the files with the searched model.

        Returns:
            A summary of the comparison, for `results.json`.

        Raises:
            ValueError: They differ.
        """
        return {}


def check_halves(checkpoint_format: Format, compressor: Compressor | Drop, space: SpaceSettings) -> None:
    """Raise UnsupportedExportError if the search may drop half of a block, which the format cannot leave out."""
    key = "compress.granularity" if isinstance(compressor, Drop) else "space.drops"
    dropped = compressor.granularity if isinstance(compressor, Drop) else space.drops
    if dropped == "subblock":
        raise UnsupportedExportError(
            f"export.formats=[{checkpoint_format.name}] leaves out whole blocks only, but {key}=subblock drops "
            f"halves: set {key}=block, or use export.formats=[nemotron_nas] or [zeroed], which hold dense weights"
        )


def check_some_block_is_kept(searched: SearchedModel) -> None:
    """Raise UnsupportedExportError for a profile that drops every block."""
    if not searched.kept_blocks:
        raise UnsupportedExportError("the profile drops every block, which no engine runs: lower budget.target")


def check_code(checkpoint_format: Format, lm: ModelStructure) -> None:
    """Raise UnsupportedExportError for a model with its own code, which the checkpoint would not contain."""
    if type(lm.model).__module__.startswith("transformers_modules."):
        raise UnsupportedExportError(
            f"export.formats=[{checkpoint_format.name}] holds models that transformers supports, but this one runs "
            "code that came with it: set export.formats=[]"
        )


def check_no_experts(checkpoint_format: Format, lm: ModelStructure) -> None:
    """Raise UnsupportedExportError for a mixture of experts, whose packed levels transformers cannot read."""
    if any(expert_of(local) for block in range(lm.num_blocks) for local in lm.layers(block)):
        raise UnsupportedExportError(
            f"export.formats=[{checkpoint_format.name}] holds no mixtures of experts, because transformers cannot read "
            "their packed levels: use export.formats=[hf]"
        )


def check_package(checkpoint_format: Format, module: str, *, extra: str) -> None:
    """Raise UnsupportedExportError if a package that writes or checks the format is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UnsupportedExportError(
            f"export.formats=[{checkpoint_format.name}] needs a package: pip install 'evopress[{extra}]'"
        )
