"""Checks the files of a run, and says which of its stages are done."""

from pathlib import Path

from evopress.inspection.finding import Finding
from evopress.report.read_run import read_run
from evopress.report.wording import megabytes


def inspect_run(folder: Path) -> Finding:
    """Which stages are done, the sizes and KLs of the models, and the command that resumes an unfinished run."""
    run = read_run(folder)
    finding = Finding("run", folder, defects=list(run.defects))
    finding.facts["what"] = ", ".join(filter(None, (run.title, f"search {run.search}" if run.search else "")))
    stages = (f"{stage} {'done' if is_done else 'to do'}" for stage, is_done in run.stages.items())
    finding.facts["stages"] = ", ".join(stages)
    if run.batches:
        finding.facts["search"] = (
            f"{len(run.batches)} minibatches, {run.batches[-1].tokens_spent:,.0f} token equivalents"
        )
    for name, scores in run.candidates.items():
        kls = [f"KL {kl:.4g} on {data_set}" for data_set, kl in scores.kl.items()]
        finding.facts[name] = ", ".join([f"{megabytes(scores.size_bytes)} MB", *kls])
    if not all(run.stages.values()):
        finding.unfinished = run.resume_command
    return finding
