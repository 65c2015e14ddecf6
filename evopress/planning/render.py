"""Shows the estimate of a run as text: tables, and a line of advice for each resource that is too small."""

from collections.abc import Mapping

from evopress.job import SEARCH_SHARE, Job
from evopress.models.active_experts import active_parameters, has_experts
from evopress.planning.estimate import ResourceEstimate, StageEstimate
from evopress.planning.machine import free_disk_bytes, load_per_processor
from evopress.planning.planned_run import PlannedRun
from evopress.planning.sample import sample_bytes
from evopress.planning.speed import Seconds, measure_seconds
from evopress.planning.stages import estimate_resources
from evopress.runtime import distributed
from evopress.runtime.memory import free_memory_bytes
from evopress.space.build import FILE_WEIGHT_BYTES

LONGEST_IN_MINUTES_S = 2 * 3600

BUSY_LOAD = 0.5
"""Programs that may compute per processor before the run starts."""

StageSeconds = Mapping[str, float]
"""Seconds by the name of a stage."""

NO_REMEDY = "no setting makes it smaller, so use a machine with more memory"

TOO_LARGE_TO_TIME = "time: not measured, because one block and its Hessians need more than half of the free memory"

NOUNS = {"database": "database", "search": "search", "tune": "tuning", "evaluate": "evaluation"}


def plan_text(run: PlannedRun) -> str:
    """The time, disk space and memory that a run takes on this machine, and the settings to change if it lacks any."""
    job = run.job
    estimate = estimate_resources(run)
    free_memory, free_disk = free_memory_bytes(run.device), free_disk_bytes(job.outputs)
    load = load_per_processor()  # before this process computes
    seconds = stage_seconds(run, estimate, free_memory=free_memory)
    lines = [
        f"{job.model.name}: {estimate.num_weights:,} weights, {estimate.num_units} units",
        *experts_line(run),
        total_line(seconds, job) if seconds else TOO_LARGE_TO_TIME,
        *effort_line(job),
        *busy_line(load),
        f"disk: {_size(estimate.database_bytes)} for the database of levels, {_size(estimate.states_bytes)} for hidden "
        f"states while it is built; {_size(free_disk)} are free at {job.outputs}",
        f"memory of {run.device}: {_size(free_memory)} are free for each of {distributed.world_size()} processes",
        "",
        *_stage_table(estimate, seconds),
        *_memory_table(estimate),
        "",
        *(advice(estimate, free_memory=free_memory, free_disk=free_disk) or ["Everything fits."]),
    ]
    return "\n".join(lines)


def stage_seconds(run: PlannedRun, estimate: ResourceEstimate, *, free_memory: int) -> StageSeconds:
    """The seconds of every stage. Empty if the sample that is timed needs more than half of the free memory."""
    if sample_bytes(run) > free_memory / 2:
        return {}
    seconds = measure_seconds(run, {operation for stage in estimate.stages for operation in stage.work})
    return within_time({stage.name: seconds_of(stage, seconds) for stage in estimate.stages}, run.job)


def within_time(seconds: StageSeconds, job: Job) -> StageSeconds:
    """The seconds of every stage, where `effort` limits the time of search and tuning."""
    num_targets = len(set(job.targets)) or 1
    search = min(seconds["search"], num_targets * job.search_limit.seconds)
    limited = {"search": search, "tune": num_targets * job.limit.seconds - search}
    return {name: min(stage_s, limited.get(name, stage_s)) for name, stage_s in seconds.items()}


def experts_line(run: PlannedRun) -> list[str]:
    """A line about the parameters that a token uses, if the model is a mixture of experts."""
    if not has_experts(run.model):
        return []
    total, active = sum(parameter.numel() for parameter in run.model.model.parameters()), active_parameters(run.model)
    return [
        f"mixture of experts: {total:,} parameters ({_size(FILE_WEIGHT_BYTES * total)} at 16 bits), of which a token "
        f"uses {active:,} ({_size(FILE_WEIGHT_BYTES * active)})"
    ]


def effort_line(job: Job) -> list[str]:
    """A line about the limit of search and tuning, if there is one."""
    if job.effort is None:
        return []
    of_target = " for each target" if job.targets else ""
    parts = f"the search may take {SEARCH_SHARE:.0%} of it, and the tuning the rest" if job.tunes else "for the search"
    return [f"effort: {job.effort}{of_target}; {parts}"]


def total_line(seconds: StageSeconds, job: Job) -> str:
    """The time of each stage that the job runs, and their total. If the job only plans, all stages are included."""
    counted = [name for name in seconds if name in job.stages] or list(seconds)
    total = sum(seconds[name] for name in counted)
    unit, unit_s, exact_up_to = ("min", 60, 2) if total < LONGEST_IN_MINUTES_S else ("hours", 3600, 10)

    def rounded(stage_s: float) -> str:
        number = stage_s / unit_s
        return (f"{number:.1f}" if number < exact_up_to else f"{number:.0f}").removesuffix(".0")

    stages = ", ".join(f"{NOUNS[name]} {rounded(seconds[name])}" for name in counted)
    excluded = ["loading the model"]
    if "evaluate" in counted:
        excluded += ["answering prompts"] * (job.eval.prompts != [])
        excluded += ["running tasks"] * bool(job.eval.tasks) + ["writing checkpoints"] * bool(job.export.formats)
    return f"about {rounded(total)} {unit} in all on this machine: {stages}; not included: {', '.join(excluded)}"


def busy_line(load: float) -> list[str]:
    """A line about other programs, if they use the processors so much that the times above mean little."""
    if load < BUSY_LOAD:
        return []
    return [f"other programs use this machine ({load:.1f} per processor): without them, the run takes less time"]


def seconds_of(stage: StageEstimate, seconds: Seconds) -> float:
    """The seconds of a stage. Processes share its work, but each process reads all levels that it needs."""
    shared = {True: 0.0, False: 0.0}
    for operation, count in stage.work.items():
        shared[operation.kind != "decode"] += count * seconds[operation]
    return shared[True] / distributed.world_size() + shared[False]


def _stage_table(estimate: ResourceEstimate, seconds: StageSeconds) -> list[str]:
    lines = [f"{'stage':10}{'tokens':>16}{'tokens/s':>12}{'minutes':>10}{'peak memory':>14}", "-" * 62]
    for stage in estimate.stages:
        stage_s = seconds.get(stage.name)
        times = f"{'–':>12}{'–':>10}"
        if stage_s is not None:
            times = f"{stage.tokens / stage_s if stage_s else 0.0:12,.0f}{stage_s / 60:10.1f}"
        lines.append(f"{stage.name:10}{stage.tokens:16,.0f}{times}{_size(stage.memory_bytes):>14}")
    return lines


def _memory_table(estimate: ResourceEstimate) -> list[str]:
    lines = []
    for stage in estimate.stages:
        lines.append("")
        lines += [
            f"{stage.name:10}{_size(item.size_bytes):>10}  {item.content}" for item in stage.memory if item.size_bytes
        ]
    return lines


def advice(estimate: ResourceEstimate, *, free_memory: int, free_disk: int) -> list[str]:
    """A line for each resource that is too small, with the settings to change. `free_memory` is for one process."""
    lines = []
    if estimate.database_bytes + estimate.states_bytes > free_disk:
        remedies = ["set outputs to a larger disk", *estimate.disk_remedies]
        lines.append(
            f"The database takes {_size(estimate.database_bytes)} and hidden states {_size(estimate.states_bytes)}, "
            f"but {_size(free_disk)} are free: {', or '.join(remedies)}."
        )
    for stage in estimate.stages:
        if stage.memory_bytes > free_memory:
            changeable = [item for item in stage.memory if item.size_bytes and item.remedy]
            largest = max(changeable, key=lambda item: item.size_bytes, default=None)
            remedy = (
                f"{_size(largest.size_bytes)} of it for {largest.content}: {largest.remedy}" if largest else NO_REMEDY
            )
            lines.append(
                f"The {stage.name} stage takes {_size(stage.memory_bytes)} of memory but {_size(free_memory)} are "
                f"free; {remedy}."
            )
    return lines


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"
