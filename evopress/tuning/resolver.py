"""Learns the rounding of a model with chosen levels, one block after another.

::

    x ← embeddings of the compressed model, y ← embeddings of the dense model, on calibration windows
    for each block:
        y ← the dense block on y
        learn the rounding with which the compressed block turns x into y; see `block_rounding.py`
        x ← the block on x, with the learnt rounding if the loss on held-out windows is lower, else with the old one
    the model with all these blocks if its KL on validation tokens is lower, else the model as it was

So each block also makes up for errors of earlier blocks. The first process does this for all others.
"""

import logging
import time
from dataclasses import dataclass, replace
from functools import partial

from evopress.evaluation.context import EvaluationContext
from evopress.runtime import distributed, signals
from evopress.runtime.progress import progress
from evopress.tuning.block_rounding import Weights, learn_block
from evopress.tuning.calibration_pair import CalibrationPair, calibration_pair
from evopress.tuning.resolved import ResolvedLevels, read_resolved, save_resolved
from evopress.tuning.task import TuningTask
from evopress.tuning.tuned_model import changed_context

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resolution:
    """What learnt rounding did: the held-out loss of each block, and KL on validation tokens, before and after."""

    losses: tuple[tuple[float, float], ...]
    kl_before: float
    kl_after: float

    @property
    def num_blocks(self) -> int:
        """The number of blocks whose rounding was learnt or kept, before the end or a stop."""
        return len(self.losses)

    @property
    def is_kept(self) -> bool:
        return self.kl_after < self.kl_before

    @property
    def kl_kept(self) -> float:
        """KL of the model that stays."""
        return min(self.kl_before, self.kl_after)


def resolve(task: TuningTask) -> tuple[EvaluationContext, Resolution]:
    """The context with learnt rounding, or the task's own one if KL does not fall; and the losses and KLs. Collective.

    A finished task is read from its file, and one that was stopped continues after the last saved block.
    """
    resolved = distributed.from_first(partial(_resolve_in_first, task))
    context = task.context
    levels = {
        (name, level): resolved.weights[name]
        for block, choice in enumerate(context.evaluator.compressible.choices(task.profile))
        for local, level in choice.levels
        if (name := context.lm.layer_name(block, local)) in resolved.weights
    }
    learnt = changed_context(context, levels, lm=context.lm, cache_gb=context.evaluator.settings.cache_gb)
    resolution = Resolution(resolved.losses, task.validation_kl(context), task.validation_kl(learnt))
    kls = resolution.kl_before, resolution.kl_after
    log.info("%s: KL on validation tokens %.4f before the rounding was learnt, %.4f after", task.name, *kls)
    if not resolution.is_kept:
        log.info("%s: the rounding stays as it was, because learning it does not lower KL", task.name)
        return context, resolution
    extent = {"resolved": task.identity, "blocks": resolution.num_blocks}
    return replace(learnt, identity={**context.identity, **extent}), resolution


def _resolve_in_first(task: TuningTask) -> ResolvedLevels:
    """Learn the blocks that are left, in this process alone."""
    resolved = read_resolved(task.path, task.identity)
    if resolved is not None:
        log.info("the rounding is learnt already: %s", task.path)
        return resolved
    resolved = read_resolved(task.state_path, task.identity) or ResolvedLevels()
    states = calibration_pair(task)
    saved = time.monotonic()
    for block in progress(range(task.context.lm.num_blocks), desc=f"{task.name}: rounding", unit="block"):
        signals.raise_if_interrupted()
        if block >= len(resolved.losses) and task.is_over():
            log.info(
                "%s: stopped after %d blocks, as effort or finish asks; the others keep their rounding",
                task.name,
                block,
            )
            break
        states.advance_dense(block)
        if block >= len(resolved.losses):
            resolved = _with_block(task, states, block, resolved)
            if time.monotonic() - saved > 60 * task.settings.save_minutes:
                save_resolved(task.state_path, resolved, task.identity)
                saved = time.monotonic()
        states.advance_compressed(block, _weights(states, block, resolved))
    save_resolved(task.path, resolved, task.identity)
    task.state_path.unlink(missing_ok=True)
    return resolved


def _with_block(task: TuningTask, states: CalibrationPair, block: int, resolved: ResolvedLevels) -> ResolvedLevels:
    """The levels with those of one more block."""
    start = states.stored_weights(block)
    learnt = learn_block(states.block_task(block), start, task.settings)
    log.info("block %d: loss on held-out windows %.4g before, %.4g after", block, learnt.loss_before, learnt.loss_after)
    lm = task.context.lm
    changed = {lm.layer_name(block, name): w for name, w in learnt.weights.items() if w is not start[name]}
    return resolved.with_block(changed, loss_before=learnt.loss_before, loss_after=learnt.loss_after)


def _weights(states: CalibrationPair, block: int, resolved: ResolvedLevels) -> Weights:
    """The weights of a block by local name, with learnt rounding where they have it."""
    lm = states.context.lm
    stored = states.stored_weights(block)
    return {local: resolved.weights.get(lm.layer_name(block, local), weight) for local, weight in stored.items()}
