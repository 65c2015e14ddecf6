"""What `effort` leaves for the stage `tune`."""

import logging
from dataclasses import asdict, replace
from functools import partial
from math import inf, isfinite

from evopress.evaluation.context import EvaluationContext
from evopress.job import Job
from evopress.runtime import distributed
from evopress.runtime.checksums import read_json_if_intact, with_checksum
from evopress.runtime.clock import Clock
from evopress.runtime.json_files import read_json, write_json
from evopress.space.units import Profile
from evopress.tuning.limit import token_equivalents_per_second, within
from evopress.tuning.settings import Tuning
from evopress.tuning.task import TuningTask

log = logging.getLogger(__name__)


def limit_tuning(job: Job, context: EvaluationContext, profile: Profile, clock: Clock) -> Job:
    """The job with as much tuning as its effort leaves after the search. Collective."""
    if job.effort is None or not job.tunes:
        return job
    limit = _limit_in_time(job, context, profile, clock) if isfinite(job.limit.seconds) else _limit_in_tokens(job)
    splits = context.splits
    calibration, validation = ((len(w), job.tune.window(w.shape[1])) for w in (splits.calibration, splits.validation))
    tune = within(job.tune, limit, calibration=calibration, validation=validation)
    if tune.does_nothing:
        log.warning("effort leaves %.0f token equivalents for the tuning, too few for a step: raise effort", limit)
    elif tune != job.tune:
        log.info("effort leaves %.0f token equivalents for the tuning: %s", limit, _changed_keys(job.tune, tune))
    return replace(job, tune=tune)


def _changed_keys(before: Tuning, after: Tuning) -> str:
    """The settings that are different, as they would be given on the command line."""
    new, old = asdict(after), asdict(before)
    return " ".join(f"tune.{key}={value}" for key, value in new.items() if value != old[key])


def is_time_over(job: Job, clock: Clock) -> bool:
    """Whether search and tuning have taken all the time that `effort` gives them."""
    return job.limit.is_reached(seconds=clock.spent("search") + clock.spent("tune"))


def _limit_in_tokens(job: Job) -> float:
    spent = distributed.from_first(lambda: read_json(job.folder / "profile.json")["token_equivalents"])
    return job.limit.minus(token_equivalents=spent, seconds=0.0).token_equivalents


def _limit_in_time(job: Job, context: EvaluationContext, profile: Profile, clock: Clock) -> float:
    """The token equivalents that this machine tunes in the time that is left; infinite if the job finishes early.

    They are found once, and kept in the file `effort.json` of the run, because the speed of a machine varies.
    """
    path = job.folder / "effort.json"
    recorded = distributed.from_first(partial(read_json_if_intact, path))
    if recorded.get("effort") == job.effort:
        return inf if recorded["tuning"] is None else recorded["tuning"]
    speed = None
    if not job.finish:
        task = TuningTask(settings=job.tune, context=context, profile=profile, path=job.folder, identity={})
        speed = token_equivalents_per_second(task)

    def record() -> float:
        spent_s = clock.spent("search") + clock.spent("tune")
        seconds = job.limit.minus(token_equivalents=0.0, seconds=spent_s).seconds
        limit = None if speed is None else seconds * speed
        write_json(path, with_checksum({"effort": job.effort, "tuning": limit}))
        return inf if limit is None else limit

    return distributed.from_first(record)
