"""The model families. Each entry says where the parts of a decoder are, for one `config.model_type`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Groups = tuple[tuple[str, ...], ...]
"""Local names of the layers of a block, grouped by the input they share."""

Paths = str | tuple[str, ...]
"""One path, or several paths of which each block has one."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Module paths of a decoder-only model.

    `blocks`, `norm` and `head` are paths from the model. All other paths are within a block. `layers` are the linear
    layers, in groups that read the same input and in the order in which they run. A group with `*` in its paths stands
    for one group per expert. Blocks may differ, for example if only some have experts: a block has those of the layers
    that exist in it. `attention` and `mlp` are the modules whose output is added to the residual stream. `kept` maps
    the parts of a block that stay uncompressed to the reason why. Vectors (norms, biases) always stay uncompressed;
    every other weight of a block must be in `layers` or in `kept`. Some parts of tensor names are different in the
    files of a checkpoint: `stored` maps the part of the name in memory to the part in the file.
    """

    layers: Groups
    kept: Mapping[str, str] = field(default_factory=dict, hash=False)
    blocks: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    attention: Paths = "self_attn"
    mlp: Paths = "mlp"
    stored: Mapping[str, str] = field(default_factory=dict, hash=False)


_ATTENTION: Groups = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))

_MLP: Groups = (("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
_EXPERTS: Groups = (("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"), ("mlp.experts.*.down_proj",))
_SHARED_EXPERTS: Groups = (
    ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    ("mlp.shared_experts.down_proj",),
)

_ROUTER: Mapping[str, str] = {"mlp.gate": "the router: small, and every token depends on its choices"}
_SHARED_GATE: Mapping[str, str] = {"mlp.shared_expert_gate": "one row: small, and it scales the whole shared expert"}

LLAMA = Family(layers=(*_ATTENTION, *_MLP))
GEMMA3 = replace(
    LLAMA,
    blocks="model.language_model.layers",
    norm="model.language_model.norm",
    stored={
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head.": "language_model.lm_head.",
    },
)
MIXTRAL = Family(
    layers=(*_ATTENTION, ("mlp.experts.*.w1", "mlp.experts.*.w3"), ("mlp.experts.*.w2",)),
    kept=_ROUTER,
    stored={".mlp.": ".block_sparse_moe."},
)
QWEN_MOE = Family(layers=(*_ATTENTION, *_MLP, *_EXPERTS), kept=_ROUTER)
QWEN2_MOE = Family(
    layers=(
        *_ATTENTION,
        *_MLP,
        ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
        ("mlp.shared_expert.down_proj",),
        *_EXPERTS,
    ),
    kept={**_ROUTER, **_SHARED_GATE},
)
QWEN3_NEXT = replace(
    QWEN2_MOE,
    layers=(("linear_attn.in_proj_qkvz",), ("linear_attn.out_proj",), *QWEN2_MOE.layers),
    kept={
        **QWEN2_MOE.kept,
        "linear_attn.in_proj_ba": "small: two rows per head, which decide how much the head writes and forgets",
        "linear_attn.conv1d": "small: a filter with a few weights per channel",
    },
    attention=("self_attn", "linear_attn"),
)
LLAMA4 = Family(
    layers=(
        *_ATTENTION,
        ("feed_forward.gate_proj", "feed_forward.up_proj"),
        ("feed_forward.down_proj",),
        ("feed_forward.experts.*.gate_proj", "feed_forward.experts.*.up_proj"),
        ("feed_forward.experts.*.down_proj",),
        ("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
        ("feed_forward.shared_expert.down_proj",),
    ),
    kept={"feed_forward.router": _ROUTER["mlp.gate"]},
    mlp="feed_forward",
)
GPT_OSS = Family(layers=(*_ATTENTION, *_EXPERTS), kept={"mlp.router": _ROUTER["mlp.gate"]})
DOTS1 = Family(layers=(*_ATTENTION, *_MLP, *_EXPERTS, *_SHARED_EXPERTS), kept=_ROUTER)
DEEPSEEK = Family(
    layers=(
        ("self_attn.q_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
        ("self_attn.q_b_proj",),
        ("self_attn.kv_b_proj",),
        ("self_attn.o_proj",),
        *_MLP,
        *_EXPERTS,
        *_SHARED_EXPERTS,
    ),
    kept=_ROUTER,
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
    "cohere": LLAMA,
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "dots1": DOTS1,
    "gemma2": LLAMA,
    "gemma3": GEMMA3,
    "gemma3_text": LLAMA,
    "glm4_moe": DOTS1,
    "gpt_oss": GPT_OSS,
    "granite": LLAMA,
    "llama": LLAMA,
    "llama4_text": LLAMA4,
    "mistral": LLAMA,
    "mixtral": MIXTRAL,
    "opt": OPT,
    "phi3": PHI3,
    "qwen2": LLAMA,
    "qwen2_moe": QWEN2_MOE,
    "qwen3": LLAMA,
    "qwen3_moe": QWEN_MOE,
    "qwen3_next": QWEN3_NEXT,
}
"""The family of every `config.model_type`. A new family needs only an entry here."""

LAYOUTS: tuple[Family, ...] = (LLAMA, PHI3, OPT, QWEN_MOE, QWEN2_MOE, QWEN3_NEXT, DOTS1, DEEPSEEK)
"""Layouts to try, in this order, for a model whose type is unknown or whose family does not fit."""
