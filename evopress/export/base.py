"""What a checkpoint format is, the searched model as formats read it, and the files that all checkpoints share."""

import copy
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.database.cache import DecodedLevels
from evopress.models.language_model import LanguageModel
from evopress.models.subblocks import SUBBLOCKS
from evopress.space.apply import BlockChoice, applied, choices_by_block, embedding_and_head_levels
from evopress.space.settings import SpaceSettings
from evopress.space.units import OUTSIDE, Profile, Space
from evopress.weights.base import CompressedWeight

T = TypeVar("T")

State = dict[str, Tensor]
"""Tensors by their name in a file."""

FROM_PRETRAINED = (
    "python -c \"from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained('{folder}')\""
)
"""A command that loads a checkpoint by transformers alone."""


SAFETENSORS_ENTRY_BYTES = 72
"""What a tensor takes in the header of a file besides its name: type, shape and place, as JSON."""


class Refused(ValueError):
    """An engine could not run the checkpoint, so nothing is written. The message says why, and what would be right."""


@dataclass(frozen=True)
class Searched:
    """A profile together with the model, space and level weights it is about. `weights` is None for drops."""

    lm: LanguageModel
    space: Space
    profile: Profile
    weights: DecodedLevels | None = None

    @cached_property
    def choices(self) -> list[BlockChoice]:
        """What each block is run with."""
        return choices_by_block(self.space, self.lm, self.profile)

    @cached_property
    def levels(self) -> dict[str, tuple[int, int]]:
        """Block and level of every compressed layer, by full module name; embeddings and head stand in no block."""
        in_blocks = {
            self.lm.layer_name(block, local): (block, level)
            for block, choice in enumerate(self.choices)
            for local, level in choice.levels
        }
        return in_blocks | {
            name: (OUTSIDE, level) for name, level in embedding_and_head_levels(self.space, self.profile)
        }

    @property
    def kept_blocks(self) -> list[int]:
        """Blocks of which at least one half is kept."""
        return [block for block, choice in enumerate(self.choices) if len(choice.dropped) < len(SUBBLOCKS)]

    @property
    def half_dropped(self) -> dict[int, str]:
        """The half that is missing from each block that has only one."""
        return {block: next(iter(part.dropped)) for block, part in enumerate(self.choices) if len(part.dropped) == 1}

    def renumbered(self, by_name: Mapping[str, T]) -> dict[str, T]:
        """The same by the names in a file that leaves out dropped blocks, and without what is in those."""
        return without_blocks(by_name, self.lm, self.kept_blocks)

    def is_dropped(self, name: str) -> bool:
        """Whether a tensor of the model belongs to a layer of a dropped sub-block."""
        return name.startswith(self._dropped_modules)

    @cached_property
    def _dropped_modules(self) -> tuple[str, ...]:
        paths = {"attention": self.lm.family.attention, "mlp": self.lm.family.mlp}
        return tuple(
            f"{self.lm.block_names[block]}.{paths[subblock]}."
            for block, choice in enumerate(self.choices)
            for subblock in choice.dropped
        )

    def untied_name(self, name: str) -> str:
        """The name under which a tensor of the model is stored. A head that is tied is stored as the embeddings."""
        head = self.lm.family.head
        is_tied_head = name == f"{head}.weight" and head not in self.lm.embedding_and_head
        return f"{self.lm.embeddings_name}.weight" if is_tied_head else name

    def packed(self, layer: str) -> CompressedWeight:
        """The chosen level of a layer as the database holds it. Raises KeyError for a layer that is not compressed."""
        assert self.weights is not None
        block, level = self.levels[layer]
        return self.weights.database.read(block, layer, level)

    def applied(self) -> AbstractContextManager[PreTrainedModel]:
        """While open, the model is the searched one."""
        return applied(self.lm, self.space, self.weights, self.profile)

    def dense_state(self, dtype: torch.dtype, leave_out: Mapping[str, object] | None = None) -> State:
        """All tensors of the model with compressed layers decoded, floats in `dtype`; tied ones once.

        Dropped sub-blocks are still there. The weights of layers in `leave_out` are not decoded and missing.
        """
        absent = {f"{name}.weight" for name in leave_out or ()}
        state = {name: tensor for name, tensor in own_tensors(self.lm.model).items() if name not in absent}
        for layer in self.levels.keys() - set(leave_out or ()):
            state[f"{layer}.weight"] = self.packed(layer).dense(dtype)
        return {name: _cast(tensor, dtype) for name, tensor in state.items()}


class Format(ABC):
    """How a checkpoint is written for some engine, and read back.

    Called in this order: `refuse_settings` at start-up, `refuse_dtype` when the model is loaded, `refuse` before
    anything is written, `write`, and `load` on what was written, to compare it with the searched model.
    """

    name: ClassVar[str]
    """Of the option and of the folder."""

    title: ClassVar[str]
    """For people."""

    packs_levels: ClassVar[bool] = False
    """Whether levels take the bytes in the file that the space says; dense formats write them out."""

    commands: tuple[str, ...]
    """Lines that load the checkpoint, with `{folder}` in them."""

    @abstractmethod
    def refuse_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        """Raises Refused for settings with which no profile could be exported; knows no model yet."""

    def refuse_dtype(self, compressor: Compressor | Drop, dtype: torch.dtype) -> None:
        """Raises Refused where levels do not survive in a model that computes in `dtype`; called once it is loaded."""
        return None

    @abstractmethod
    def refuse(self, searched: Searched) -> None:
        """Raises Refused when the engine cannot run the profile."""

    def dtype(self, searched: Searched) -> torch.dtype:
        """The 16-bit type for what is not packed, where the user leaves the choice."""
        return searched.lm.dtype if searched.lm.dtype.itemsize == 2 else torch.bfloat16

    def as_stored(self, searched: Searched, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """What an engine makes of a tensor of the searched model; packed layers stay as they are."""
        return tensor.to(dtype)

    @abstractmethod
    def predicted_bytes(self, searched: Searched, dtype: torch.dtype) -> int:
        """Bytes of all tensors that `write` will write, from the sizes in the space; headers come on top."""

    def stored_names(self, searched: Searched) -> dict[str, str]:
        """The model's name of every tensor that the checkpoint holds, by its name in the model that is read back."""
        return searched.renumbered({name: name for name in own_tensors(searched.lm.model)})

    def predicted_names(self, searched: Searched) -> list[str]:
        """Names of the tensors that `write` will write, or others of the same length."""
        return list(own_tensors(searched.lm.model))

    def predicted_header_bytes(self, searched: Searched) -> int:
        """Bytes of the file that are not tensors, estimated before it is written."""
        return sum(len(name) + SAFETENSORS_ENTRY_BYTES for name in self.predicted_names(searched))

    @abstractmethod
    def write(self, searched: Searched, dtype: torch.dtype, folder: Path) -> None:
        """Write everything an engine needs into an empty folder."""

    @abstractmethod
    def load(self, folder: Path, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        """Read a written checkpoint with the engine's own loader where it is at hand, to compute in `dtype`."""

    def check_files(self, searched: Searched, dtype: torch.dtype, folder: Path) -> dict[str, object]:
        """Compare what stands in the files with the searched model. Raises ValueError where they differ."""
        return {}


def refuse_halves(form: Format, space: SpaceSettings) -> None:
    """Raises Refused where the search may drop halves of blocks, for a format that leaves out whole ones only."""
    if space.drops == "subblock":
        raise Refused(
            f"export.formats=[{form.name}] leaves out whole blocks only, and space.drops=subblock drops halves: set "
            "space.drops=block, or use export.formats=[nemotron_nas] or [zeroed], which hold dense weights"
        )


def need_package(form: Format, module: str, extra: str) -> None:
    """Raises Refused when a package that the format is written or checked with is not installed."""
    if importlib.util.find_spec(module) is None:
        raise Refused(f"export.formats=[{form.name}] needs a package: pip install 'evopress[{extra}]'")


def own_tensors(model: PreTrainedModel) -> State:
    """Parameters and persistent buffers, tied ones under their first name only."""
    owners = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name in owners}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()


def level_bytes(searched: Searched) -> int:
    """Bytes of all levels, by the space."""
    return searched.space.size_bytes(searched.profile) - searched.space.fixed_bytes


def unsearched(searched: Searched) -> State:
    """The tensors of a file that are not levels: embeddings, head, norms, biases."""
    levels = {f"{layer}.weight" for layer in searched.levels}
    return searched.renumbered({n: tensor for n, tensor in own_tensors(searched.lm.model).items() if n not in levels})


def config_of(lm: LanguageModel, dtype: torch.dtype) -> PretrainedConfig:
    """The model's configuration for a file, a copy."""
    config = copy.deepcopy(lm.model.config)
    config.architectures = [type(lm.model).__name__]
    config.dtype = dtype
    return config


def stored_config(searched: Searched, dtype: torch.dtype) -> PretrainedConfig:
    """The configuration of a file that leaves out dropped blocks."""
    config, kept = config_of(searched.lm, dtype), searched.kept_blocks
    return config if len(kept) == searched.lm.num_blocks else with_blocks(config, searched.lm.num_blocks, kept)


def without_blocks(state: Mapping[str, T], lm: LanguageModel, kept: list[int]) -> dict[str, T]:
    """The tensors of the model with only the `kept` blocks, renumbered."""
    new_index = {f"{lm.block_names[old]}.": f"{lm.family.blocks}.{new}." for new, old in enumerate(kept)}
    outside = f"{lm.family.blocks}."
    result: dict[str, T] = {}
    for name, tensor in state.items():
        if not name.startswith(outside):
            result[name] = tensor
            continue
        old = f"{outside}{name.removeprefix(outside).partition('.')[0]}."
        if old in new_index:
            result[new_index[old] + name.removeprefix(old)] = tensor
    return result


def with_blocks(config: PretrainedConfig, num_blocks: int, kept: list[int]) -> PretrainedConfig:
    """The configuration of the model with only the `kept` blocks; every list with an entry per block is cut too.

    Where the blocks are those of a text model inside the model, that part of the configuration is changed.
    """
    text = config.get_text_config()
    if text is not config:
        key = next(key for key, value in vars(config).items() if value is text)
        outer = copy.deepcopy(config)
        setattr(outer, key, with_blocks(text, num_blocks, kept))
        return outer
    values = {
        key: [value[block] for block in kept] if isinstance(value, list | tuple) and len(value) == num_blocks else value
        for key, value in config.to_dict().items()
        if key not in NOT_PER_BLOCK
    }
    values["num_hidden_layers"] = len(kept)
    shorter = type(config).from_dict(values)
    for key in NOT_PER_BLOCK:
        if hasattr(config, key):
            setattr(shorter, key, getattr(config, key))
    return shorter


NOT_PER_BLOCK = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id")
"""Lists of a configuration whose length is not the number of blocks even where it happens to agree."""


def write_safetensors(state: State, folder: Path) -> None:
    """`model.safetensors`, or numbered parts with an index when large."""
    save_torch_state_dict(state, folder, max_shard_size="5GB", metadata={"format": "pt"})


def read_safetensors(folder: Path) -> State:
    """All tensors of a folder, mapped from the files."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def fill(model: PreTrainedModel, state: State, absent: tuple[str, ...] = ()) -> None:
    """Copy tensors by name into a model, cast to its types.

    Raises ValueError for a name that is unknown, or missing and not below one of the modules in `absent`.
    """
    wanted = own_tensors(model).keys()
    missing = [name for name in wanted - state.keys() if not name.startswith(absent)]
    unknown = state.keys() - model.state_dict().keys()
    if missing or unknown:
        raise ValueError(
            f"the checkpoint does not fit its configuration: missing {missing[:3]}, unknown {sorted(unknown)[:3]}"
        )
    model.load_state_dict(state, strict=False)
    model.tie_weights()


def write_config(config: PretrainedConfig | Mapping[str, object], lm: LanguageModel, folder: Path) -> None:
    """Configuration, generation configuration and tokenizer."""
    if isinstance(config, PretrainedConfig):
        config.save_pretrained(folder)
    else:
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if lm.model.generation_config is not None:
        lm.model.generation_config.to_json_file(folder / "generation_config.json")
    lm.tokenizer.save_pretrained(folder)
