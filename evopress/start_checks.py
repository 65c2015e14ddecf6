"""Checks that run before the weights of a model are read. They find errors that would stop the run hours later."""

import logging
from functools import partial
from random import Random

from evopress.data.tokenization import bos_tokens
from evopress.evaluation.answers import prompts_of
from evopress.evaluation.eval_checks import check_chat_template, check_tasks
from evopress.export import PlannedModel, check_export_of_model
from evopress.job import Job
from evopress.models.language_model import LanguageModel
from evopress.models.subblocks import SUBBLOCKS
from evopress.runtime import distributed
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.choices import Choices
from evopress.space.memory import MemoryBudget
from evopress.space.units import Space
from evopress.targets import jobs_by_target

log = logging.getLogger(__name__)


def check_start(job: Job, lm: LanguageModel, space: Space) -> None:
    """Check everything that follows from the settings, the model's configuration and its tokenizer.

    `lm` may be on the `meta` device. This loads the data of lm-eval's tasks, but no weights and no other text. Every
    process must call it.

    Raises:
        ValueError: An export format, a search, a budget, a task or the length of the windows does not fit the model.
    """
    if job.data.bos:
        bos_tokens(lm.tokenizer)
    _check_positions(job, lm)
    _check_context(job, lm)
    planned = PlannedModel(lm=lm, compressor=job.compress, space=space, window=job.data.window)
    check_export_of_model(job.export, planned)
    check_searches(job, lm, space)
    if "evaluate" in job.planned_stages:
        prompts_of(job.eval, lm)
    if "evaluate" in job.planned_stages and job.eval.tasks:
        check_chat_template(job.eval, lm.tokenizer)
        distributed.from_first(partial(_check_tasks, job, lm))


def _check_positions(job: Job, lm: LanguageModel) -> None:
    """Raise ValueError if windows are longer than the model's position embeddings. Rotary embeddings have no limit."""
    limit = lm.max_positions
    if limit is not None and job.data.window > limit:
        raise ValueError(
            f"data.window is {job.data.window}, but the model has embeddings for {limit} positions: set it to {limit} "
            "or less"
        )


def _check_context(job: Job, lm: LanguageModel) -> None:
    """Warn if a budget of memory has a longer context than the model was made for."""
    budget, limit = job.budget, lm.max_context
    if isinstance(budget, MemoryBudget) and limit is not None and budget.context > limit:
        log.warning(
            "budget.context is %d, but the model was made for contexts of up to %d tokens: lower budget.context, "
            "unless the engine scales the positions",
            *(budget.context, limit),
        )


def check_searches(job: Job, lm: LanguageModel, space: Space) -> None:
    """Start every search, and stop at its first question.

    Raises ValueError if a search does not fit the space, no profile meets a budget, or a budget drops every block.
    """
    for target_job in jobs_by_target(job, space) if job.targets else [job]:
        search, budget = target_job.search, target_job.budget
        choices = Choices(space, lm).of(evenly_spaced_profile(space, budget))
        if all(len(choice.dropped) == len(SUBBLOCKS) for choice in choices):
            raise ValueError(f"budget.target is {budget}, which drops every block: ask for less compression")
        search.num_questions(space, budget)
        next(search.run(space, budget, Random(target_job.seed)), None)


def _check_tasks(job: Job, lm: LanguageModel) -> None:
    from evopress.evaluation.task_rehearsal import rehearse_tasks  # imports lm-eval, which takes seconds

    check_tasks(job.eval)
    rehearse_tasks(job.eval, lm)
