"""A causal language model that runs as a whole or block by block, also with other weights or without sub-blocks."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module, ModuleList, Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evopress.models.experts import Expert
from evopress.models.logit_scale import logit_scale
from evopress.models.offload import DeviceCopy, StandIn, has_offloaded_parameters
from evopress.models.origin import Origin
from evopress.models.replacement import replaced_modules, replaced_weights
from evopress.models.structure import ModelStructure
from evopress.models.subblocks import SUBBLOCKS, no_op

BlockKwargs = dict[str, object]
"""The arguments that the model passes to a block besides the hidden states: mask, position embeddings, …"""

WeightsOfBlock = Callable[[int], Mapping[str, Tensor]]
"""Maps the index of a block to the dense weights of its layers, by local layer name."""


@dataclass(frozen=True, kw_only=True)
class LanguageModel(ModelStructure):
    """A dense model with its tokenizer. Its weights never change, except while `replaced` is open."""

    tokenizer: PreTrainedTokenizerBase
    origin: Origin = field(default_factory=Origin)
    _device_copy: DeviceCopy = field(default_factory=DeviceCopy, compare=False, repr=False)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the class of the model, its configuration, the paths of its parts and all weights."""
        model_class = type(self.model)  # if its code came with the model, its module name contains the revision
        digest = hashlib.sha256(f"{model_class.__module__}.{model_class.__qualname__}".encode())
        digest.update(self.model.config.to_json_string(use_diff=True).encode())
        digest.update(json.dumps(asdict(self.family), sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            digest.update(plain.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def embed(
        self, tokens: Int[Tensor, "batch time"], weight: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch time hidden"], list[BlockKwargs]]:
        """The hidden states that enter the first block, and the other arguments of each block.

        Those arguments are for a single window and broadcast over any batch. They differ between blocks where the
        model mixes sliding and full attention. `weight` replaces the weight of the embeddings.
        """
        with replaced_weights(self.model, {} if weight is None else {self.embeddings_name: weight}):
            hidden, _ = self._block_inputs(tokens)
            return hidden, self._block_inputs(tokens[:1])[1]

    def _block_inputs(self, tokens: Int[Tensor, "batch time"]) -> tuple[Tensor, list[BlockKwargs]]:
        """The input of the first block, and the other arguments of each block. No block runs."""
        calls: list[tuple[Tensor, BlockKwargs]] = []

        def record(hidden: Tensor, **kwargs: object) -> Tensor:
            calls.append((hidden, kwargs))
            return hidden

        with self._replaced_blocks([StandIn(block, record) for block in self.blocks]), torch.no_grad():
            self._without_head(input_ids=tokens, use_cache=False)
        return calls[0][0], [kwargs for _, kwargs in calls]

    @property
    def _without_head(self) -> Module:
        """The part of the model that ends before the head, whose logits are large."""
        base = self.model.base_model  # the model itself if its class names no base (Llama 4)
        return base if base is not self.model else self.model.get_submodule(self.family.blocks.rpartition(".")[0])

    def run_block(
        self,
        index: int,
        hidden: Float[Tensor, "batch time hidden"],
        kwargs: BlockKwargs,
        *,
        weights: Mapping[str, Tensor] | None = None,
        dropped: frozenset[str] = frozenset(),
    ) -> Float[Tensor, "batch time hidden"]:
        """Run one block, with replaced `weights` (local layer name → dense) and without the `dropped` sub-blocks.

        A dropped sub-block ("attention", "mlp") adds nothing to the residual stream and is not computed.
        """
        if len(dropped) == len(SUBBLOCKS):
            return hidden
        parameters = {f"{local}.weight": weight for local, weight in (weights or {}).items()}
        with self._without(index, dropped):
            output = self._call_block(index, hidden, kwargs, parameters)
        return output[0] if isinstance(output, tuple) else output

    def _call_block(self, index: int, hidden: Tensor, kwargs: BlockKwargs, parameters: Mapping[str, Tensor]) -> Any:
        """Call a block, with `parameters` replaced and offloaded tensors copied to the device."""
        block = self.blocks[index]
        copies = self._device_copy.tensors_of(index, block, device=hidden.device, excluded=parameters)
        if not parameters and not copies:
            return block(hidden, **kwargs)
        return functional_call(block, {**copies, **parameters}, (hidden,), kwargs)

    def prefetch(self, index: int, replaced: Collection[str] = ()) -> None:
        """Start to copy a block to the device, if it is offloaded, without the weights of the `replaced` layers."""
        excluded = {f"{local}.weight" for local in replaced}
        self._device_copy.prefetch(index, self.blocks[index], device=self.device, excluded=excluded)

    def routed_tokens(self, block: int, local: str) -> Tensor | None:
        """Positions of the tokens that were last routed to a layer of an expert; None for a layer that sees all tokens.

        Positions are numbered through the whole batch, window by window.
        """
        parent = self.blocks[block].get_submodule(local.rpartition(".")[0])
        return parent.tokens if isinstance(parent, Expert) else None

    def final_norm(
        self, hidden: Float[Tensor, "*batch hidden"], weight: Tensor | None = None
    ) -> Float[Tensor, "*batch hidden"]:
        """The normed hidden states that enter the head. `weight` replaces the weight of the last norm."""
        norm = self.model.get_submodule(self.family.norm)
        return norm(hidden) if weight is None else functional_call(norm, {"weight": weight}, (hidden,))

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "LanguageModel":
        """A second model that shares all tensors with this one, except `parameters` (full parameter name → value)."""
        shared = {id(tensor): tensor for tensor in chain(self.model.parameters(), self.model.buffers())}
        model = deepcopy(self.model, shared)
        for name, value in parameters.items():
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, Parameter(value, requires_grad=False))
        return replace(self, model=model, _device_copy=DeviceCopy())

    def logits(
        self, normed: Float[Tensor, "*batch hidden"], weight: Tensor | None = None
    ) -> Float[Tensor, "*batch vocabulary"]:
        """The logits in the model's dtype. `weight` replaces the weight of the head."""
        return self.logits_of(self.head_products(normed, weight))

    def head_products(
        self, normed: Float[Tensor, "*batch hidden"], weight: Tensor | None = None
    ) -> Float[Tensor, "*batch vocabulary"]:
        """The product with the head, before it is scaled or capped, as some models do."""
        head = self.model.get_submodule(self.family.head)
        return head(normed) if weight is None else functional_call(head, {"weight": weight}, (normed,))

    def logits_of(self, products: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch vocabulary"]:
        """The logits, scaled (Granite, Cohere) and softly capped (Gemma 2) where the model's configuration says so."""
        scale = logit_scale(self.text_config)
        scaled = products if scale == 1 else scale * products
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return scaled if cap is None else cap * torch.tanh(scaled / cap)

    def to(self, device: torch.device, *, offload: bool) -> None:
        """Move the model to the device that computes; with `offload`, everything except the blocks."""
        with self._replaced_blocks([]) if offload else nullcontext():
            self.model.to(device)  # type: ignore[arg-type]

    @contextmanager
    def full_model(self, weights_of_block: WeightsOfBlock | None = None) -> Iterator[PreTrainedModel]:
        """While open, the model itself can be called, even if its blocks are offloaded.

        `weights_of_block` returns the weights (local layer name → dense) that a block uses instead of its own. It is
        called whenever a block runs, so only the weights of one block have to be in memory at a time.
        """

        def stand_in(index: int) -> StandIn:
            def run(hidden: Tensor, **kwargs: object) -> Any:
                weights = weights_of_block(index) if weights_of_block else {}
                return self._call_block(index, hidden, kwargs, {f"{local}.weight": w for local, w in weights.items()})

            return StandIn(self.blocks[index], run)

        if weights_of_block is None and not has_offloaded_parameters(self.model, self.device):
            yield self.model
            return
        with self._replaced_blocks([stand_in(index) for index in range(self.num_blocks)]):
            yield self.model

    @contextmanager
    def replaced(
        self,
        weights: Mapping[str, Tensor],
        dropped: Mapping[int, frozenset[str]],
        weights_of_block: WeightsOfBlock | None = None,
    ) -> Iterator[PreTrainedModel]:
        """While open, the model itself has `weights` (full layer name → dense) and lacks the `dropped` sub-blocks.

        This is for tools that need the full model, such as an evaluation harness. Afterwards the model is unchanged, to
        the last bit. With `weights_of_block`, blocks run with the weights that it returns, as in `full_model`, but
        their attributes keep the original weights. If embeddings and head share a weight, replacing the embeddings also
        replaces the head.
        """
        if self.embeddings_name in weights and len(self.embedding_and_head) == 1:
            weights = {**weights, self.family.head: weights[self.embeddings_name]}
        with ExitStack() as stack:
            stack.enter_context(replaced_weights(self.model, weights))
            for block, subblocks in dropped.items():
                stack.enter_context(self._without(block, subblocks))
            yield stack.enter_context(self.full_model(weights_of_block))

    def _without(self, index: int, dropped: Collection[str]) -> AbstractContextManager[None]:
        block = self.blocks[index]
        paths = {self.subblock_path(index, subblock): subblock for subblock in dropped}
        absent = {path: no_op(subblock, block.get_submodule(path), layer_idx=index) for path, subblock in paths.items()}
        return replaced_modules(block, absent)

    def _replaced_blocks(self, blocks: Iterable[Module]) -> AbstractContextManager[None]:
        return replaced_modules(self.model, {self.family.blocks: ModuleList(blocks)})
