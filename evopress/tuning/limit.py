"""Fits the settings of a tuning to a limit of token equivalents."""

from dataclasses import replace
from math import inf
from time import monotonic

from evopress.tuning.gradients import gradient_groups
from evopress.tuning.settings import STEP_COST, Tuning, resolving_equivalents, token_equivalents
from evopress.tuning.task import TuningTask

Shape = tuple[int, int]
"""Windows, and tokens in each."""


def within(settings: Tuning, limit: float, *, calibration: Shape, validation: Shape) -> Tuning:
    """The settings with so few steps, and so few validation tokens, that the tuning costs at most `limit`.

    All parts of the tuning shrink by the same share. The schedule of the learning rate ends with the last step, so a
    short tuning is a whole one. Learnt rounding is left out if the calibration windows alone cost too much, and so are
    the steps if the checks alone do.
    """
    cost = cost_of(settings, calibration=calibration, validation=validation)
    if cost <= limit:
        return settings
    share, (count, window) = limit / cost, validation
    shorter = replace(
        settings,
        resolve_steps=max(1, int(share * settings.resolve_steps)),
        validation_tokens=max(1, int(share * min(settings.validation_tokens, count * window))),
    )
    shapes = {"calibration": calibration, "validation": validation}
    if cost_of(replace(shorter, tokens=0), **shapes) > limit:
        shorter = replace(shorter, resolve="none")
    checks = token_equivalents(shorter, 0, 1 + shorter.checks, windows=validation)
    left = limit - cost_of(replace(shorter, tokens=0), **shapes) - checks
    step_tokens = settings.windows * window
    steps = max(0, int(left / (STEP_COST * step_tokens)))
    return replace(shorter, tokens=min(settings.tokens, steps * step_tokens))


def cost_of(settings: Tuning, *, calibration: Shape, validation: Shape) -> float:
    """The token equivalents of the tuning, if no check ends it early."""
    cost = 0.0
    if settings.resolve != "none":
        cost += resolving_equivalents(settings, calibration=calibration, validation=validation)
    if settings.tokens:
        window = validation[1]
        steps, checks = settings.num_steps(window), 1 + len(settings.check_steps(window))
        cost += token_equivalents(settings, steps, checks, windows=validation)
    return cost


def token_equivalents_per_second(task: TuningTask) -> float:
    """How fast this machine tunes: the faster of two steps, which change nothing. Collective."""
    tokens = task.windows("search")[: task.settings.windows]
    fastest = inf
    for _ in range(2):
        started = monotonic()
        for _ in gradient_groups(task.model(), tokens):
            pass
        fastest = min(fastest, monotonic() - started)
    return STEP_COST * tokens.numel() / fastest
