"""The stage `search`. It finds the profile of a run."""

import logging
from functools import partial

from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.oracle import Oracle
from evopress.identity import search_identity
from evopress.job import Job
from evopress.runtime import distributed
from evopress.runtime.clock import Clock
from evopress.saved_profile import read_saved_profile, save_profile
from evopress.search.driver import SearchTask, StopReason, run_search
from evopress.search.log import SearchLog
from evopress.search.watcher import SearchWatcher
from evopress.space.units import Profile

log = logging.getLogger(__name__)


def search_profile(job: Job, context: EvaluationContext, clock: Clock) -> Profile:
    """Search, unless the run directory already contains the result of a search with the same settings."""
    settings = search_identity(job, context)
    profile = read_saved_profile(job.folder, context.space, settings)
    if profile is not None:
        return profile
    watcher = SearchWatcher(job.tracker)
    profile = run_search(
        SearchTask(job.search, context.space, job.budget, job.seed),
        Oracle(context, job.seed),
        log=SearchLog(job.folder / "search.jsonl", settings),
        on_answer=watcher,
        stop_rule=partial(_reason_to_stop, job, clock),
    )
    achieved, token_equivalents = job.budget.achieved(context.space, profile), watcher.token_equivalents
    if distributed.is_first():
        amount = job.budget.amount(context.space, profile)
        unit = f" {job.budget.metric}" if job.budget.metric in ("bits", "sparsity", "drop") else ""
        log.info("searched profile: %s%s after %d token equivalents", amount, unit, token_equivalents)
        save_profile(
            job.folder,
            context.space,
            profile,
            settings=settings,
            achieved=achieved,
            token_equivalents=token_equivalents,
        )
    return profile


def _reason_to_stop(job: Job, clock: Clock, token_equivalents: float) -> StopReason | None:
    if job.finish:
        return "finish"
    is_spent = job.search_limit.is_reached(token_equivalents=token_equivalents, seconds=clock.spent("search"))
    return "effort" if is_spent else None
