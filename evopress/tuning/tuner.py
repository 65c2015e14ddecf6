"""Tunes the floating-point numbers of a model with fixed levels, to match the dense model's predictions.

::

    r ← 0 for every scale, norm and weight that is trained
    for each step:
        windows ← the next ones of the search split
        for the head and each block, from the last to the first:
            g ← the gradient of the mean KL(dense ‖ compressed) with respect to its parameters
            r ← r + Adam(g)                       immediately; see `gradients.py`
        at some steps: measure the rounded model on validation tokens, and keep the best
    return the best model, which may be the untuned one
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from evopress.evaluation.context import EvaluationContext
from evopress.runtime import distributed, signals
from evopress.runtime.progress import progress
from evopress.tuning.adam import adam_updates, rate_factor, windows_of_step
from evopress.tuning.gradients import gradient_groups
from evopress.tuning.parameters import kind_of
from evopress.tuning.state import TuningResult, TuningState, new_state, read_result, read_state, save_result, save_state
from evopress.tuning.task import TuningTask
from evopress.tuning.tunable_model import TunableModel
from evopress.tuning.tuned_model import tuned_context

log = logging.getLogger(__name__)

Report = Callable[[Mapping[str, float], int], None]
"""Receives a metric, `loss` or `kl_validation`, and the step."""


def tune(task: TuningTask, report: Report) -> tuple[EvaluationContext | None, TuningResult]:
    """The context of the tuned model, and the result. The context is None if the untuned model is the best. Collective.

    A finished task is read from its file. A task that was stopped continues from its last saved state.
    """
    result = distributed.from_first(partial(read_result, task.path, task.identity))
    model = task.model()
    if result is None:
        result = _run(task, model, report)
        if distributed.is_first():
            save_result(task.path, result, task.identity)
            task.state_path.unlink(missing_ok=True)
    else:
        log.info("%s: finished earlier, read from %s", task.name, task.path)
    if not result.changes:
        log.info(
            "%s: KL on validation tokens never fell below %.4f, so the untuned model is kept",
            task.name,
            result.kl_before,
        )
        return None, result
    log.info("%s: KL on validation tokens %.4f before, %.4f after", task.name, result.kl_before, result.kl_after)
    changes = {name: change.to(model.lm.device) for name, change in result.changes.items()}
    context = tuned_context(task.context, model, changes, cache_gb=task.context.evaluator.settings.cache_gb)
    return replace(context, identity={**context.identity, "tuned": task.identity, "steps": result.num_steps}), result


def _run(task: TuningTask, model: TunableModel, report: Report) -> TuningResult:
    """Take the remaining steps, with their checks."""
    settings = task.settings
    state = distributed.from_first(partial(read_state, task.state_path, task.identity))
    state = new_state(model.changes) if state is None else state.to(model.lm.device)
    model.changes.update(state.changes)
    if not state.checks:
        state = state.checked(_kl(task, model))
        report({"kl_validation": state.checks[-1][1]}, 0)
    check_steps = settings.check_steps(task.windows("search").shape[1])
    saved = time.monotonic()
    for step in progress(range(state.step + 1, task.num_steps + 1), desc=task.name, unit="step"):
        if state.checks_since_best >= settings.patience:
            log.info(
                "%s: stopped after %d of %d steps, because KL no longer falls", task.name, state.step, task.num_steps
            )
            break
        signals.raise_if_interrupted()
        if state.is_stopped or distributed.from_first(task.is_over):
            state = _stopped(task, model, state)
            report({"kl_validation": state.checks[-1][1]}, state.step)
            break
        state, loss = _step(task, model, state, step)
        report({"loss": loss}, step)
        if step in check_steps:
            state = state.checked(_kl(task, model))
            report({"kl_validation": state.checks[-1][1]}, step)
        is_due = step in check_steps or time.monotonic() - saved > 60 * settings.save_minutes
        if is_due and distributed.is_first():
            save_state(task.state_path, state, task.identity)
            saved = time.monotonic()
    return TuningResult(state.best, state.checks)


def _stopped(task: TuningTask, model: TunableModel, state: TuningState) -> TuningState:
    """The state in which the tuning ends before its last step, with a check of that state."""
    log.info("%s: stopped after %d of %d steps, as effort or finish asks", task.name, state.step, task.num_steps)
    state = replace(state, is_stopped=True)
    if distributed.is_first():
        save_state(task.state_path, state, task.identity)
    return state if state.checks[-1][0] == state.step else state.checked(_kl(task, model))


def _step(task: TuningTask, model: TunableModel, state: TuningState, step: int) -> tuple[TuningState, float]:
    """Take one step. Returns the new state, and the mean KL before the step. Also updates `model.changes`."""
    settings, pool = task.settings, task.windows("search")
    chosen = windows_of_step(step, per_step=settings.windows, num_windows=len(pool), seed=settings.seed)
    factor = rate_factor(step, steps=task.num_steps, warmup=settings.warmup)
    moments, loss = dict(state.moments), 0.0
    for group in gradient_groups(model, pool[chosen]):
        loss += group.kl
        for kind, learning_rate in settings.learning_rates.items():
            gradients = {name: g for name, g in group.by_name.items() if kind_of(name, g) == kind}
            if gradients:
                updates, new = adam_updates(gradients, moments, step=step, learning_rate=factor * learning_rate)
                moments |= new
                model.changes.update({name: model.changes[name] + update for name, update in updates.items()})
    return replace(state, changes=dict(model.changes), moments=moments, step=step), loss


def _kl(task: TuningTask, model: TunableModel) -> float:
    """KL on validation tokens of the model with its changes, rounded as in a file."""
    return task.validation_kl(tuned_context(task.context, model, model.changes, cache_gb=0))
