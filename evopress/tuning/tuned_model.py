"""The tuned model that the rest of a run uses. Its numbers are rounded as in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from evopress.database.cache import DecodedLevels
from evopress.database.resident import PackedLevels
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.evaluator import Evaluator
from evopress.models.language_model import LanguageModel
from evopress.tuning.parameters import Changes, changed, dense_part, values_of
from evopress.tuning.tunable_model import TunableModel
from evopress.weights.base import CompressedWeight


@dataclass(frozen=True)
class TunedLevels:
    """The levels of a database, with `tuned` weights in place of some. Keys are the full layer name and the level."""

    database: PackedLevels
    tuned: Mapping[tuple[str, int], CompressedWeight]

    def read(self, block: int, layer: str, level: int) -> CompressedWeight:
        """One level of one layer, given by its full name."""
        weight = self.tuned.get((layer, level))
        return self.database.read(block, layer, level) if weight is None else weight


def tuned_context(
    context: EvaluationContext, model: TunableModel, changes: Changes, *, cache_gb: float
) -> EvaluationContext:
    """A context whose model has the changed weights. KL is still measured from the dense model of `context`.

    The new model shares all other tensors with the model of `context`. At most `cache_gb` of decoded weights are kept.
    """
    levels = _levels(model, changes)
    return changed_context(
        context, levels, lm=context.lm.with_parameters(_parameters(model, changes)), cache_gb=cache_gb
    )


def changed_context(
    context: EvaluationContext,
    tuned: Mapping[tuple[str, int], CompressedWeight],
    *,
    lm: LanguageModel,
    cache_gb: float,
) -> EvaluationContext:
    """The context with another `lm` and other weights of some layers and levels, measured against the same dense model.

    `cache_gb` limits the decoded weights.
    """
    before = context.evaluator.weights
    weights = None
    if before is not None:
        weights = DecodedLevels(
            TunedLevels(before.database, tuned),
            limit_bytes=int(cache_gb * 1e9),
            dtype=lm.dtype,
            device=lm.device,
            resident=TunedLevels(before.resident, tuned),
        )
    evaluator = Evaluator(
        lm,
        context.space,
        weights,
        context.evaluator.settings,
        dense=context.evaluator,
        folder=context.evaluator.folder,
    )
    return replace(context, lm=lm, evaluator=evaluator)


def _levels(model: TunableModel, changes: Changes) -> dict[tuple[str, int], CompressedWeight]:
    """The weights of the changed layers, by full name and level."""
    levels = {}
    for block, choice in enumerate(model.choices(model.profile)):
        for local, level in choice.levels:
            name = model.lm.layer_name(block, local)
            packed = model.packed[name]
            if values := values_of(name, packed, changes):
                levels[name, level] = packed.with_float_parts(values)
    return levels


def _parameters(model: TunableModel, changes: Changes) -> dict[str, Tensor]:
    """The changed parameters of the dense model by full name, with the dtype and device of the originals."""
    lm = model.lm
    weights = {name: lm.model.get_parameter(name) for name in changes if name.endswith(".weight")}
    return {
        name: changed(dense_part(weight.to(lm.device)), changes[name]).to(weight) for name, weight in weights.items()
    }
