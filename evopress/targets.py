"""Splits a run with several budgets into one job per target."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from evopress.job import Job
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.units import Profile, Space


def jobs_by_target(job: Job, space: Space, start_profiles: Callable[[], list[Profile]] = list) -> Iterator[Job]:
    """Yield a job for every target, from the largest model to the smallest.

    Each job has its own seed, a folder inside that of `job`, and its own repositories for uploads. Its search starts
    from the profiles that `start_profiles` returns. That function is called just before the job is yielded, so it can
    return results of the previous job.

    Raises ValueError for a target that no profile can reach.
    """
    budgets = [replace(job.budget, target=target) for target in dict.fromkeys(job.targets)]
    costs = {budget: space.cost(evenly_spaced_profile(space, budget)) for budget in budgets}
    for number, budget in enumerate(sorted(budgets, key=lambda budget: -costs[budget])):
        search = job.search.warm_started(start_profiles(), (number + 1) / len(budgets))
        name = f"{budget.target}{budget.metric}"
        export, folder = job.export.of_target(name), job.folder / name
        seed = job.seed + number
        yield replace(job, budget=budget, search=search, export=export, folder=folder, seed=seed, targets=())
