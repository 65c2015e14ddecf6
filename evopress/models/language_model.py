"""A causal language model and its parts: load it, run it block by block, with other weights or without a sub-block."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call
from torch.nn import Linear, Module, ModuleList
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evopress.models.experts import Expert
from evopress.models.families import Family
from evopress.models.offload import StandIn, Visit, rests_elsewhere

log = logging.getLogger(__name__)

Kwargs = dict[str, object]
"""What the model passes to one of its blocks besides the hidden states: mask, position embeddings, …"""

SUBBLOCKS = ("attention", "mlp")


@dataclass(frozen=True)
class LanguageModel:
    """A dense model with its parts named. Its weights are never changed, except while `replaced` is open.

    `identity` is the SHA-256 of configuration and weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    name: str
    _visit: Visit = field(default_factory=Visit, compare=False, repr=False)

    @cached_property
    def blocks(self) -> list[Module]:
        return list(self.model.get_submodule(self.family.blocks).children())

    @cached_property
    def block_names(self) -> list[str]:
        return [f"{self.family.blocks}.{index}" for index in range(self.num_blocks)]

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def layer_groups(self) -> tuple[tuple[str, ...], ...]:
        """Local names of the layers of a block, grouped by the input they share."""
        return self.family.layers

    @property
    def device(self) -> torch.device:
        """Where it computes. Blocks may rest elsewhere."""
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

    @cached_property
    def identity(self) -> str:
        digest = hashlib.sha256(self.model.config.to_json_string(use_diff=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def linear(self, block: int, local: str) -> Linear:
        """A layer of a block by its local name."""
        layer = self.blocks[block].get_submodule(local)
        assert isinstance(layer, Linear)
        return layer

    def layer_name(self, block: int, local: str) -> str:
        """The full module name of a layer."""
        return f"{self.block_names[block]}.{local}"

    def layers_of(self, subblock: str) -> tuple[str, ...]:
        """Local names of the layers that make up the attention or the MLP."""
        everything = [local for group in self.layer_groups for local in group]
        in_attention = [local for local in everything if local.startswith(f"{self.family.attention}.")]
        return tuple(local for local in everything if (local in in_attention) == (subblock == "attention"))

    def outputs_of(self, subblock: str) -> tuple[str, ...]:
        """Local names of the layers whose outputs the attention or the MLP adds to the stream; several with experts."""
        layers = self.layers_of(subblock)
        return tuple(local for local in layers if local.rpartition(".")[2] == layers[-1].rpartition(".")[2])

    def tokens_of(self, block: int, local: str) -> Tensor | None:
        """Places of the tokens that a layer of an expert saw last, among all that entered; None where it sees all."""
        parent = self.blocks[block].get_submodule(local.rpartition(".")[0])
        return parent.tokens if isinstance(parent, Expert) else None

    @cached_property
    def embeddings_name(self) -> str:
        """The full module name of the embeddings."""
        embeddings = self.model.get_input_embeddings()
        return next(name for name, module in self.model.named_modules() if module is embeddings)

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """Full names of the layers that are embeddings and head; the embeddings alone where both share a weight."""
        is_tied = self.model.get_submodule(self.family.head).weight is self._embeddings
        return (self.embeddings_name,) if is_tied else (self.embeddings_name, self.family.head)

    def embed(
        self, tokens: Int[Tensor, "batch time"], weight: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch time hidden"], list[Kwargs]]:
        """Hidden states that enter the first block, and what each block is called with besides them.

        The latter are those of a single window and broadcast over any batch; they differ between blocks where the model
        mixes sliding and full attention. `weight` takes the place of the embeddings'.
        """
        with self.replaced({} if weight is None else {self.embeddings_name: weight}, {}):
            hidden, _ = self._record(tokens)
            return hidden, self._record(tokens[:1])[1]

    def _record(self, tokens: Int[Tensor, "batch time"]) -> tuple[Tensor, list[Kwargs]]:
        calls: list[tuple[Tensor, Kwargs]] = []

        def record(hidden: Tensor, **kwargs: object) -> Tensor:
            calls.append((hidden, kwargs))
            return hidden

        with self._blocks_swapped([StandIn(block, record) for block in self.blocks]), torch.no_grad():
            self.model.base_model(input_ids=tokens, use_cache=False)  # without the head, whose logits are large
        return calls[0][0], [kwargs for _, kwargs in calls]

    @contextmanager
    def _blocks_swapped(self, stand_ins: list[Module]) -> Iterator[None]:
        path, _, name = self.family.blocks.rpartition(".")
        parent = self.model.get_submodule(path)
        real = getattr(parent, name)
        setattr(parent, name, ModuleList(stand_ins))
        try:
            yield
        finally:
            setattr(parent, name, real)

    def run_block(
        self,
        index: int,
        hidden: Float[Tensor, "batch time hidden"],
        kwargs: Kwargs,
        weights: Mapping[str, Tensor] | None = None,
        dropped: frozenset[str] = frozenset(),
    ) -> Float[Tensor, "batch time hidden"]:
        """Run one block with some weights (local layer name → dense) in place of its own, and without some sub-blocks.

        What is `dropped` ("attention", "mlp") adds nothing to the residual stream and is not computed.
        """
        if len(dropped) == len(SUBBLOCKS):
            return hidden
        parameters = {f"{local}.weight": weight for local, weight in (weights or {}).items()}
        with self._silenced(self.blocks[index], dropped):
            output = self._call_block(index, hidden, kwargs, parameters)
        return output[0] if isinstance(output, tuple) else output

    def _call_block(self, index: int, hidden: Tensor, kwargs: Kwargs, parameters: Mapping[str, Tensor]) -> Any:
        """What a block itself returns, with `parameters` in place of its own, and what rests elsewhere brought here."""
        block = self.blocks[index]
        visiting = self._visit.of(index, block, hidden.device, parameters)
        if not parameters and not visiting:
            return block(hidden, **kwargs)
        return functional_call(block, {**visiting, **parameters}, (hidden,), kwargs)

    def to(self, device: torch.device, *, offload: bool) -> None:
        """Move the model, or with `offload` what is no block, to the device that computes."""
        with self._blocks_swapped([]) if offload else nullcontext():
            self.model.to(device)  # type: ignore[arg-type]

    @contextmanager
    def whole(self) -> Iterator[PreTrainedModel]:
        """While open, the model itself can be called, though blocks may rest elsewhere."""

        def visitor(index: int) -> StandIn:
            return StandIn(self.blocks[index], lambda hidden, **kwargs: self._call_block(index, hidden, kwargs, {}))

        at_home = not any(rests_elsewhere(tensor, self.device) for tensor in self.model.parameters())
        with nullcontext() if at_home else self._blocks_swapped([visitor(index) for index in range(self.num_blocks)]):
            yield self.model

    @contextmanager
    def _silenced(self, block: Module, dropped: frozenset[str]) -> Iterator[None]:
        paths = {"attention": self.family.attention, "mlp": self.family.mlp}
        real: dict[str, Module] = {paths[part]: block.get_submodule(paths[part]) for part in dropped}
        for part in dropped:
            block.set_submodule(paths[part], silent(part))
        try:
            yield
        finally:
            for path, module in real.items():
                block.set_submodule(path, module)

    def final_norm(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """What the head reads."""
        return self.model.get_submodule(self.family.norm)(hidden)

    def logits(
        self, normed: Float[Tensor, "*batch hidden"], weight: Tensor | None = None
    ) -> Float[Tensor, "*batch vocabulary"]:
        """The head, with the soft cap of Gemma 2. In the model's dtype. `weight` takes the place of the head's."""
        return self.capped(self.uncapped(normed, weight))

    def uncapped(
        self, normed: Float[Tensor, "*batch hidden"], weight: Tensor | None = None
    ) -> Float[Tensor, "*batch vocabulary"]:
        """The product with the head alone."""
        head = self.model.get_submodule(self.family.head)
        return head(normed) if weight is None else functional_call(head, {"weight": weight}, (normed,))

    def capped(self, logits: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch vocabulary"]:
        """With the soft cap, where the model has one."""
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @contextmanager
    def replaced(
        self, weights: Mapping[str, Tensor], dropped: Mapping[int, frozenset[str]]
    ) -> Iterator[PreTrainedModel]:
        """While open, the model itself has `weights` (full layer name → dense) and lacks the `dropped` sub-blocks.

        For tools that want a whole model, such as an evaluation harness. Afterwards it is bit for bit what it was.
        Embeddings that are the head's weight too are replaced there as well.
        """
        if self.embeddings_name in weights and len(self.ends) == 1:
            weights = {**weights, self.family.head: weights[self.embeddings_name]}
        real = {name: self.model.get_submodule(name).get_parameter("weight") for name in weights}
        silenced = [self._silenced(self.blocks[block], parts) for block, parts in dropped.items()]
        try:
            for name, weight in weights.items():
                at_rest = weight.to(real[name].device)
                self.model.get_submodule(name).weight = torch.nn.Parameter(at_rest, requires_grad=False)
            for context in silenced:
                context.__enter__()
            with self.whole() as model:
                yield model
        finally:
            for context in silenced:
                context.__exit__(None, None, None)
            for name, weight in real.items():
                self.model.get_submodule(name).weight = weight


def silent(part: str) -> Module:
    """Stands in for an attention or an MLP and adds nothing to the residual stream."""
    return _SilentAttention() if part == "attention" else _SilentMLP()


class _SilentAttention(Module):
    def forward(self, hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _SilentMLP(Module):
    """Zeros; for a last layer that widens its input, the residual addition broadcasts them."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(())


def check_parts(lm: LanguageModel) -> None:
    """Run a short window part by part and as a whole.

    Raises ValueError when the logits are not finite, or differ: the family is then wrong.
    """
    tokens = torch.arange(17, device=lm.device).remainder(lm.vocab_size).repeat(2, 1)
    with torch.no_grad():
        hidden, kwargs = lm.embed(tokens)
        for block in range(lm.num_blocks):
            hidden = lm.run_block(block, hidden, kwargs[block])
        parts = lm.logits(lm.final_norm(hidden)).float()
        with lm.whole() as model:
            whole = model(input_ids=tokens, use_cache=False).logits.float()
    if not bool(whole.isfinite().all()):
        raise ValueError(
            f"the logits of {lm.name} are NaN or infinite: check model.path, or load it with model.dtype=float32"
        )
    tolerance = 1e-3 if lm.dtype == torch.float32 else 5e-2
    difference = float((parts - whole).abs().max()) if parts.shape == whole.shape else float("inf")
    if not difference <= tolerance * float(whole.abs().max()):
        raise ValueError(
            f"run part by part, {lm.name} gives other logits than as a whole (largest difference {difference:.3g}): "
            f"set model.family to where its parts are"
        )


def check_weights(lm: LanguageModel) -> None:
    """Raises ValueError for a weight that is NaN or infinite."""
    for name, weight in lm.model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise ValueError(f"{name} of the dense model holds NaN or infinite values: check model.path or model.dtype")


def check_layers(lm: LanguageModel) -> None:
    """Raises ValueError when a layer shares its weight with another part, which would be compressed by accident."""
    owners: dict[int, str] = {}
    for name, parameter in lm.model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), name)
    for block in range(lm.num_blocks):
        for local in (local for group in lm.layer_groups for local in group):
            name = f"{lm.layer_name(block, local)}.weight"
            owner = owners[lm.linear(block, local).weight.data_ptr()]
            if owner != name:
                raise ValueError(f"{name} is the same tensor as {owner}: take it out of model.family.layers")
