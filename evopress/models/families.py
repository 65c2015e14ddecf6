"""The model families: where the parts of a decoder are, one entry per `config.model_type`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

Groups = tuple[tuple[str, ...], ...]
"""Local names of the layers of a block, grouped by the input they share."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Module paths of a decoder-only model.

    `blocks`, `norm` and `head` are paths from the model. The others are paths within a block: `layers` are the linear
    layers in groups that read the same input, in the order in which they run; `attention` and `mlp` are the modules
    whose output is added to the residual stream. A group with `*` in its paths stands for one group per expert.
    """

    layers: Groups
    blocks: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    attention: str = "self_attn"
    mlp: str = "mlp"


_ATTENTION: Groups = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))

LLAMA = Family(layers=(*_ATTENTION, ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)))
MIXTRAL = replace(LLAMA, layers=(*_ATTENTION, ("mlp.experts.*.w1", "mlp.experts.*.w3"), ("mlp.experts.*.w2",)))
QWEN_MOE = replace(
    LLAMA,
    layers=(*_ATTENTION, ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"), ("mlp.experts.*.down_proj",)),
)
PHI3 = Family(layers=(("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)))
OPT = Family(
    blocks="model.decoder.layers",
    norm="model.decoder.final_layer_norm",
    mlp="fc2",
    layers=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ),
)

FAMILIES: Mapping[str, Family] = {
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": MIXTRAL,
    "opt": OPT,
    "phi3": PHI3,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "qwen3_moe": QWEN_MOE,
}
"""By `config.model_type`. A new family needs an entry here and nothing else."""

LAYOUTS: tuple[Family, ...] = (LLAMA, PHI3, OPT, QWEN_MOE)
"""What a model of an unknown type is compared with, in this order."""
