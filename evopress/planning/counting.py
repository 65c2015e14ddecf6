"""Counts the work and the memory that the evaluator and tables would need with a model."""

from collections import Counter
from collections.abc import Sequence

from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.evaluation.shared_prefixes import BlockRun, shared_runs
from evopress.evaluation.switch_effects import PART_TOKENS, token_equivalents
from evopress.planning.decoded_count import DecodedCount
from evopress.planning.planned_run import PlannedRun
from evopress.planning.work import Operation, Work
from evopress.space.units import Profile

Shape = tuple[int, int]
"""The number of windows, and the number of tokens in each."""


class EvaluatorCount:
    """Adds up the work of the questions so far, and keeps the peak of the memory that they would have taken.

    `student_bytes` is the largest size of hidden states of profiles that are in memory at once. `teacher_tokens` is the
    number of tokens that the dense model has run on. `has_tables` is whether any question was a table of switch
    effects.
    """

    def __init__(self, run: PlannedRun, before: "EvaluatorCount | None" = None):
        """`before` counts an earlier stage of the same evaluator, which keeps the levels and states from that stage."""
        self.run = run
        self.work = Work()
        self.token_equivalents = 0.0
        self.student_bytes = 0
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
        runs_of_blocks = self._runs_of_blocks(students)
        computed: Counter[int] = Counter()
        for block, runs in zip(self.run.model.alike, runs_of_blocks, strict=False):  # empty without students
            computed[block] += sum(run.is_computed for run in runs)
        parts = Counter(parts_of(windows, max(1, self.settings.batch_tokens // length)))
        for part, number in parts.items():
            self.work.add_to_blocks(Operation("block", part, length), self.run.model, times=number)
            for block, times in computed.items():
                self.work[Operation("block", part, length, block=block)] += number * times
        self.teacher_tokens += windows * length
        state_bytes = windows * length * self.run.state_bytes
        for runs in runs_of_blocks:
            self._keep_states(len(runs) * state_bytes, state_bytes, lists=2, share=2, transfers=2)
        chunks = windows * length / self.settings.head_tokens
        self.work[Operation("head", 1, self.settings.head_tokens)] += chunks * (1 + len(distinct))
        self._read(self.decoded.use(students))

    def table(self, profile: Profile, shape: Shape, draws: int) -> None:
        """Count `switch_effects` at a profile."""
        windows, length = shape
        self.has_tables = True
        self.token_equivalents += token_equivalents(self.run.space, windows * length, draws)
        part_tokens = min(PART_TOKENS, self.settings.batch_tokens)
        for part in parts_of(windows, max(1, part_tokens // length)):
            self.work.add_to_blocks(Operation("table", part, length, draws), self.run.model)
            self.work[Operation("table_head", part, length, draws)] += 1
        self._read(self.decoded.use([profile]) + self.decoded.use_all(profile))
        num_blocks, state_bytes = self.run.model.num_blocks, windows * length * self.run.state_bytes
        cached = self.teacher_tokens * self.run.state_bytes
        self._keep_states((num_blocks + 1) * state_bytes, cached, lists=1, share=2, transfers=3)
        for _ in range(num_blocks):
            self._keep_states((1 + draws) * state_bytes, cached, lists=2, share=4, transfers=2)

    def passes(self, shape: Shape) -> None:
        """Count any other table: one pass of the dense model, window by window."""
        windows, length = shape
        self.token_equivalents += windows * length
        self.work.add_to_blocks(Operation("block", 1, length), self.run.model, times=windows)

    def num_block_runs(self, profiles: Sequence[Profile]) -> int:
        """How many times blocks run for these profiles: once for each common prefix, and never if they are dropped."""
        return sum(run.is_computed for runs in self._runs_of_blocks(profiles) for run in runs)

    def _runs_of_blocks(self, profiles: Sequence[Profile]) -> list[list[BlockRun]]:
        choices = self.run.choices.of_all(profiles)
        inputs = [self.run.choices.outside(profile)[:1] for profile in profiles]
        start_states = [sorted(set(inputs)).index(levels) for levels in inputs]
        return [runs for runs, _ in shared_runs(choices, start_states)]

    def _keep_states(self, num_bytes: int, teacher_bytes: int, *, lists: int, share: int, transfers: int) -> None:
        """Count `lists` lists of states of `num_bytes`, each with a share of the memory that teacher's states leave.

        What exceeds it goes through files, `transfers` times.
        """
        limit = self.run.limit_of_states
        left = max(limit // 2, limit - teacher_bytes)
        in_memory = min(num_bytes, left // share)
        self.student_bytes = max(self.student_bytes, lists * in_memory)
        if num_bytes > in_memory:
            self.work[Operation("states")] += transfers * (num_bytes - in_memory)

    def _read(self, num_bytes: int) -> None:
        if num_bytes:
            self.work[Operation("decode")] += num_bytes


def parts_of(windows: int, windows_per_part: int) -> list[int]:
    """The number of windows in each of the parts that go through a block one after the other."""
    whole, rest = divmod(windows, windows_per_part)
    return [windows_per_part] * whole + [rest] * bool(rest)
