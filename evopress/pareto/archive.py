"""`archive.csv`, with every profile that the searches of a front evaluated."""

import csv
import io
from collections.abc import Sequence

from evopress.job import Job
from evopress.search.encoding import encode
from evopress.search.log import read_evaluations
from evopress.space.units import Space

HEADER = ("target", "batch", "levels", "cost", "size_bytes", "fitness")


def archive_csv(space: Space, jobs: Sequence[Job]) -> str:
    """A header, and a row for every profile that a search measured on a minibatch. Columns are those of `HEADER`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for job in jobs:
        for number, batch in enumerate(read_evaluations(job.folder / "search.jsonl")):
            for profile, fitness in batch:
                row = (encode(profile), space.cost(profile), space.size_bytes(profile), fitness)
                writer.writerow((job.budget.target, number, *row))
    return text.getvalue()
