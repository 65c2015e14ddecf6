"""Counts the work and the memory that the evaluator and tables would need with a model."""

from collections.abc import Sequence
from itertools import groupby

from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.evaluation.shared_prefixes import shared_runs
from evopress.evaluation.switch_effects import PART_TOKENS, token_equivalents
from evopress.planning.decoded_count import DecodedCount
from evopress.planning.planned_run import PlannedRun
from evopress.planning.work import Operation, Work
from evopress.space.apply import choices_by_block, embedding_and_head_levels
from evopress.space.units import Profile

Shape = tuple[int, int]
"""The number of windows, and the number of tokens in each."""


class EvaluatorCount:
    """Adds up the work of the questions so far, and keeps the peak of the memory that they would have taken.

    `student_tokens` is the largest number of tokens whose hidden states exist at once. `teacher_tokens` is the number
    of tokens that the dense model has run on. `has_tables` is whether any question was a table of switch effects.
    """

    def __init__(self, run: PlannedRun, before: "EvaluatorCount | None" = None):
        """`before` counts an earlier stage of the same evaluator, which keeps the levels and states from that stage."""
        self.run = run
        self.work = Work()
        self.token_equivalents = 0.0
        self.student_tokens = 0
        self.has_tables = False
        self.teacher_tokens: int = before.teacher_tokens if before else 0
        self.decoded: DecodedCount = before.decoded if before else DecodedCount(run)

    @property
    def settings(self) -> EvaluatorSettings:
        return self.run.job.evaluator

    def measure(self, profiles: Sequence[Profile | None], shape: Shape) -> None:
        """Count `Evaluator.measure` of these profiles, and the dense model's own pass as the teacher."""
        windows, length = shape
        num_blocks = self.run.model.num_blocks
        distinct = sorted(dict.fromkeys(profiles), key=lambda profile: profile or ())
        students = [profile for profile in distinct if profile is not None]
        self.token_equivalents += windows * length * (1 + self.num_block_runs(students) / num_blocks)
        parts = parts_of(windows, max(1, self.settings.batch_tokens // length))
        for part in parts:
            self.work[Operation("block", part, length)] += num_blocks
        runs = [(part, profile) for part in range(len(parts)) for profile in distinct]
        at_once = self._runs_at_once(parts[0] * length if parts else 1)
        for batch in (runs[first : first + at_once] for first in range(0, len(runs), at_once)):
            self._run_batch(batch, parts, length)
        chunks = windows * length / self.settings.head_tokens
        self.work[Operation("head", 1, self.settings.head_tokens)] += chunks * (1 + len(distinct))
        self.teacher_tokens += windows * length
        self._read(self.decoded.use(students))

    def _run_batch(self, batch: Sequence[tuple[int, Profile | None]], parts: Sequence[int], length: int) -> None:
        """Count runs, of profiles on parts of the windows, that go through the blocks together."""
        students = [(part, profile) for part, profile in batch if profile is not None]
        for part, group in groupby(students, key=lambda run: run[0]):
            block_runs = self.num_block_runs([profile for _, profile in group])
            self.work[Operation("block", parts[part], length)] += block_runs
        self.student_tokens = max(self.student_tokens, sum(parts[part] * length for part, _ in students))

    def table(self, profile: Profile, shape: Shape, draws: int) -> None:
        """Count `switch_effects` at a profile."""
        windows, length = shape
        self.has_tables = True
        self.token_equivalents += token_equivalents(self.run.space, windows * length, draws)
        part_tokens = min(PART_TOKENS, self.settings.batch_tokens)
        for part in parts_of(windows, max(1, part_tokens // length)):
            self.work[Operation("table", part, length, draws)] += self.run.model.num_blocks
            self.work[Operation("table_head", part, length, draws)] += 1
            self._read(self.decoded.use([profile]) + self.decoded.use_all(profile))

    def passes(self, shape: Shape) -> None:
        """Count any other table: one pass of the dense model, window by window."""
        windows, length = shape
        self.token_equivalents += windows * length
        self.work[Operation("block", 1, length)] += windows * self.run.model.num_blocks

    def num_block_runs(self, profiles: Sequence[Profile]) -> int:
        """How many times blocks run for these profiles: once for each common prefix, and never if they are dropped."""
        model, space = self.run.model, self.run.space
        choices = [choices_by_block(space, model, profile) for profile in profiles]
        inputs = [embedding_and_head_levels(space, profile)[:1] for profile in profiles]
        start_states = [sorted(set(inputs)).index(levels) for levels in inputs]
        return sum(run.is_computed for runs, _ in shared_runs(choices, start_states) for run in runs)

    def _read(self, num_bytes: int) -> None:
        if num_bytes:
            self.work[Operation("decode")] += num_bytes

    def _runs_at_once(self, part_tokens: int) -> int:
        """How many runs can go through the model together, as in `Evaluator`."""
        return max(1, self.run.limit_of_states // 2 // (2 * part_tokens * self.run.state_bytes))


def parts_of(windows: int, windows_per_part: int) -> list[int]:
    """The number of windows in each of the parts that go through a block one after the other."""
    whole, rest = divmod(windows, windows_per_part)
    return [windows_per_part] * whole + [rest] * bool(rest)
