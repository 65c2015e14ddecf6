"""The structure of a causal language model: its blocks, their layers, its embeddings and its head, by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList
from transformers import PretrainedConfig, PreTrainedModel

from evopress.models.block_layers import first_path, groups_of
from evopress.models.families import Family, Groups
from evopress.models.packed_experts import PackedLayout, layout_of, packed_names, packed_state


@dataclass(frozen=True, kw_only=True)
class ModelStructure:
    """A model whose parts have names. The model may be on the `meta` device: nothing here reads a weight's values.

    A *local* name is the path of a layer within its block.
    """

    model: PreTrainedModel
    family: Family
    name: str

    @cached_property
    def blocks(self) -> list[Module]:
        blocks = self.model.get_submodule(self.family.blocks)
        assert isinstance(blocks, ModuleList)
        return list(blocks)

    @cached_property
    def block_names(self) -> list[str]:
        return [f"{self.family.blocks}.{index}" for index in range(self.num_blocks)]

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def layer_groups(self, block: int) -> Groups:
        """Local names of the layers of a block, grouped by the input they share."""
        return self._layer_groups[block]

    @cached_property
    def _layer_groups(self) -> list[Groups]:
        return [groups_of(self.family, block) for block in self.blocks]

    def layers(self, block: int) -> list[str]:
        """Local names of all layers of a block."""
        return [local for group in self.layer_groups(block) for local in group]

    @cached_property
    def alike(self) -> list[int]:
        """For each block, the first block whose parameters have the same names and shapes."""
        first: dict[object, int] = {}
        shapes = [
            tuple((name, parameter.shape) for name, parameter in block.named_parameters()) for block in self.blocks
        ]
        return [first.setdefault(shapes_of_block, index) for index, shapes_of_block in enumerate(shapes)]

    @property
    def text_config(self) -> PretrainedConfig:
        """The part of the configuration that describes the blocks. This is all of it for a text-only model."""
        return self.model.config.get_text_config()

    @property
    def max_positions(self) -> int | None:
        """The number of position embeddings. None for rotary embeddings, which have no limit."""
        is_rotary = getattr(self.text_config, "rope_parameters", None) is not None
        return None if is_rotary else getattr(self.text_config, "max_position_embeddings", None)

    @property
    def max_context(self) -> int | None:
        """The longest context that the model was made for; None if its configuration does not say."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """The device that computes. Blocks may be offloaded to another one."""
        return self._embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def hidden_size(self) -> int:
        return self._embeddings.shape[1]

    @property
    def vocab_size(self) -> int:
        return self._embeddings.shape[0]

    @property
    def _embeddings(self) -> Tensor:
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    def linear(self, block: int, local: str) -> Linear:
        """A layer of a block by its local name."""
        layer = self.blocks[block].get_submodule(local)
        assert isinstance(layer, Linear)
        return layer

    def layer_name(self, block: int, local: str) -> str:
        """The full module name of a layer."""
        return f"{self.block_names[block]}.{local}"

    def stored_names(self, names: Iterable[str]) -> list[str]:
        """The names that tensors with these names have in the files of a checkpoint."""
        stored = [self._stored_name(name) for name in names]
        return packed_names(stored) if self._layout.in_files else stored

    def stored_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the model as the files of a checkpoint have them."""
        stored = {self._stored_name(name): tensor for name, tensor in state.items()}
        return packed_state(stored, self._layout) if self._layout.in_files else stored

    @property
    def _layout(self) -> PackedLayout:
        return layout_of(self.model.config.model_type)

    def _stored_name(self, name: str) -> str:
        renamed = (name.replace(part, stored, 1) for part, stored in self.family.stored.items() if part in name)
        return next(renamed, name)

    def subblock_path(self, block: int, subblock: str) -> str:
        """The local name of the attention or the MLP of a block."""
        paths = {"attention": self.family.attention, "mlp": self.family.mlp}[subblock]
        path = first_path(self.blocks[block], paths)
        assert path is not None
        return path

    def subblock_layers(self, block: int, subblock: str) -> tuple[str, ...]:
        """Local names of the layers that make up the attention or the MLP of a block."""
        prefix, is_attention = f"{self.subblock_path(block, 'attention')}.", subblock == "attention"
        return tuple(local for local in self.layers(block) if local.startswith(prefix) == is_attention)

    def subblock_outputs(self, block: int, subblock: str) -> tuple[str, ...]:
        """Local names of the last layers of the attention or the MLP. There are several if it has experts."""
        layers = self.subblock_layers(block, subblock)
        return tuple(local for local in layers if local.rpartition(".")[2] == layers[-1].rpartition(".")[2])

    @cached_property
    def embeddings_name(self) -> str:
        """The full module name of the embeddings."""
        embeddings = self.model.get_input_embeddings()
        return next(name for name, module in self.model.named_modules() if module is embeddings)

    @cached_property
    def embedding_and_head(self) -> tuple[str, ...]:
        """Full module names of the embeddings and the head, or only of the embeddings if the two share a weight."""
        is_tied = self.model.get_submodule(self.family.head).weight is self._embeddings
        return (self.embeddings_name,) if is_tied else (self.embeddings_name, self.family.head)
