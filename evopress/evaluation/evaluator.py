"""Measures the fitness of many profiles on one minibatch. Work that several profiles have in common is done once.

All profiles go through the model together, block by block. Profiles that agree on blocks 0 … b−1 share one state.
At block b the distinct states are grouped by the levels that their profiles choose there::

    states ← {embeddings}
    for each block b:
        for each distinct choice of levels at b:
            set the weights of block b once, and run it on every distinct state with this choice
    compute the KL of every distinct final state from the dense model's, a chunk of tokens at a time

Up to float rounding, the result is the same as loading each profile and running the whole model. Its exact bits depend
only on the profile, the windows and the settings. They do not depend on the other profiles, on earlier calls or on the
number of processes. Every process gets all results.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from evopress.database.cache import DecodedLevels
from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.metrics import NO_DIVERGENCE, Divergence, FinalStates, divergences
from evopress.evaluation.shared_prefixes import BlockRun, shared_runs
from evopress.evaluation.teacher_cache import TeacherCache
from evopress.models.language_model import BlockKwargs, LanguageModel
from evopress.models.state_storage import StateMemory
from evopress.models.transfers import prefetched
from evopress.runtime import distributed
from evopress.runtime.config_class import config_class
from evopress.search.base import Fitness
from evopress.space.apply import EmbeddingAndHead, embedding_and_head_weights
from evopress.space.units import Profile, Space


class Run(NamedTuple):
    """A profile (None is the dense model) on one part of the windows. `part` is the index of that part.

    The windows of a part always go through a block together, and never together with windows of another run, because a
    matrix product of another shape may round differently. The split into parts depends only on the settings and on the
    length of the windows.
    """

    part: int
    profile: Profile | None


@config_class
class EvaluatorSettings:
    """How the fitness of a profile is measured, and how much memory that may take.

    `fitness` is the KL from the dense model (`kl`), the KL over its `top_k` most likely tokens (`topk_kl`), or the
    `perplexity`. `cache_gb` limits the memory for decoded weights; those of the block that runs are kept even beyond
    it. `states_gb` limits the memory for hidden states; further ones are kept in files. `batch_tokens` is how many
    tokens go through a block at once, and `head_tokens` how many go through the head at once.
    """

    fitness: Fitness = "kl"
    top_k: int = Field(default=512, gt=0)
    cache_gb: float = Field(default=4.0, gt=0)
    states_gb: float = Field(default=2.0, gt=0)
    batch_tokens: int = Field(default=4096, gt=0)
    head_tokens: int = Field(default=64, gt=0)


class Evaluator:
    """Compares profiles of `space` with the dense model. `weights` is None if the units have no layers (drops).

    The dense model is `lm` or, where tuning has changed that, the `lm` of another evaluator, `dense`. Hidden states
    that exceed the memory for them are in files in `folder`, by default the one for temporary files.
    """

    def __init__(
        self,
        lm: LanguageModel,
        space: Space,
        weights: DecodedLevels | None,
        settings: EvaluatorSettings,
        *,
        dense: "Evaluator | None" = None,
        folder: Path | None = None,
    ):
        self.lm = lm
        self.space = space
        self.weights = weights
        self.settings = settings
        self.dense = dense
        self.compressible = CompressibleModel(lm, space, weights)
        self.block_tokens = 0
        """Tokens × blocks that this process has run for profiles. The dense model, which may be cached, is excluded."""
        self.folder = folder
        self._teacher_cache = TeacherCache(settings.states_gb * 1e9 / 2)

    @property
    def state_memory(self) -> StateMemory:
        """Memory for the states of profiles: what the dense model's states leave, at least half of `states_gb`."""
        teacher_bytes = (self.dense or self)._teacher_cache.size_bytes
        limit = self.settings.states_gb * 1e9
        return StateMemory(max(limit / 2, limit - teacher_bytes), self.folder)

    def evaluate(
        self, profiles: Sequence[Profile], tokens: Int[Tensor, "batch time"], fitness: Fitness | None = None
    ) -> list[float]:
        """Fitness of each profile on one minibatch; lower is better. `fitness` overrides the settings."""
        fitness = fitness or self.settings.fitness
        results = self.measure(profiles, tokens, top_k=self.settings.top_k if fitness == "topk_kl" else None)
        return [result.perplexity if fitness == "perplexity" else result.mean_kl for result in results]

    @torch.no_grad()
    def measure(
        self, profiles: Sequence[Profile | None], tokens: Int[Tensor, "batch time"], *, top_k: int | None = None
    ) -> list[Divergence]:
        """KL from the dense model and cross-entropy of each profile; None stands for the dense model.

        With `top_k`, the KL covers only the dense model's `top_k` most likely tokens. Every process must call this with
        the same arguments.
        """
        parts = tokens.split(self._windows_per_part(tokens.shape[1]))
        distinct = sorted(dict.fromkeys(profiles), key=lambda profile: profile or ())  # neighbours share prefixes
        runs = [Run(part, profile) for part in range(len(parts)) for profile in distinct]
        measured: dict[Run, Divergence] = {}
        for measured_by_process in distributed.gather(self._measure_runs(distributed.share(runs), parts, top_k)):
            measured.update(measured_by_process)
        return [
            sum((measured[Run(part, profile)] for part in range(len(parts))), NO_DIVERGENCE) for profile in profiles
        ]

    def passes(self, profiles: Sequence[Profile]) -> float:
        """How many forward passes through the whole model these profiles cost, if each common prefix runs once."""
        choices = self.compressible.chosen.of_all(profiles)
        block_runs = (run for runs, _ in shared_runs(choices, [0] * len(choices)) for run in runs)
        return sum(run.is_computed for run in block_runs) / self.lm.num_blocks

    def forget_teacher(self) -> None:
        """Free the dense model's states; they are computed again when they are needed."""
        self._teacher_cache.clear()

    def _measure_runs(self, runs: Sequence[Run], parts: Sequence[Tensor], top_k: int | None) -> dict[Run, Divergence]:
        """The divergence of every run of this process. All runs go through a block before any enters the next one."""
        students = [run for run in runs if run.profile is not None]
        outside = self._outside_weights(students)
        used_parts = sorted({run.part for run in runs})
        teachers = dict(zip(used_parts, self._teacher_states([parts[part] for part in used_parts]), strict=True))
        self._make_room(sum(state.nbytes for state in teachers.values()), [parts[run.part] for run in students])
        states = dict(zip(students, self._final_states(students, parts, outside), strict=True))
        measured: dict[Run, Divergence] = {}
        for part, group in groupby(runs, key=lambda run: run.part):
            runs_of_part, teacher = list(group), teachers.pop(part)
            results = divergences(
                FinalStates(teacher, self.lm.logits),
                [
                    FinalStates(states.pop(run, teacher), partial(self.lm.logits, weight=outside[run.profile].head))
                    for run in runs_of_part
                ],
                tokens=parts[part].to(self.lm.device),
                top_k=top_k,
                chunk_tokens=self.settings.head_tokens,
            )
            measured.update(zip(runs_of_part, results, strict=True))
        return measured

    def _make_room(self, teacher_bytes: int, parts: Sequence[Tensor]) -> None:
        """Forget the dense model's states on other windows, as far as states of profiles on `parts` need the memory."""
        state_bytes = sum(part.numel() for part in parts) * self.lm.hidden_size * self.lm.dtype.itemsize
        needed = 2 * state_bytes  # before a block and after it
        cache = (self.dense or self)._teacher_cache
        cache.shrink(max(teacher_bytes, self.settings.states_gb * 1e9 - needed))

    def _outside_weights(self, runs: Sequence[Run]) -> Mapping[Profile | None, EmbeddingAndHead]:
        """The weights of embeddings and head at the profile of each run. They stay in memory for the whole question."""
        levels_of = {run.profile: self.compressible.chosen.outside(run.profile) for run in runs}
        weights = {
            levels: embedding_and_head_weights(self.lm, self.weights, levels) for levels in set(levels_of.values())
        }
        return {None: EmbeddingAndHead(), **{profile: weights[levels] for profile, levels in levels_of.items()}}

    def _teacher_states(self, parts: Sequence[Tensor]) -> list[Float[Tensor, "batch time hidden"]]:
        """The dense model's normed final hidden states on parts of the windows.

        The dense model runs exactly as a student does, so that the KL contains no batching error. In bfloat16 that
        error would be 0.002.
        """
        if self.dense is not None:
            return self.dense._teacher_states(parts)

        def compute(missing: Sequence[Tensor]) -> list[Tensor]:
            block_tokens = self.block_tokens
            runs = [Run(part, None) for part in range(len(missing))]
            states = self._final_states(runs, missing, self._outside_weights(runs))
            self.block_tokens = block_tokens
            return states

        return self._teacher_cache.get(parts, compute)

    def _final_states(
        self, runs: Sequence[Run], parts: Sequence[Tensor], outside: Mapping[Profile | None, EmbeddingAndHead]
    ) -> list[Float[Tensor, "batch time hidden"]]:
        """Normed final hidden states of each run. All runs go through a block before any goes through the next one."""
        if not runs:
            return []
        chosen = self.compressible.chosen
        choices = chosen.of_all(run.profile for run in runs)
        inputs = [(run.part, chosen.outside(run.profile)[:1]) for run in runs]
        run_of_input = dict(zip(inputs, runs, strict=True))
        distinct_inputs = sorted(run_of_input)
        kwargs: list[BlockKwargs] = []
        keep = self.state_memory.share(2).keep  # the states before a block, and those after it

        def embedded(run: Run) -> Tensor:
            tokens, weight = parts[run.part].to(self.lm.device), outside[run.profile].embeddings
            hidden, kwargs_of_blocks = self.lm.embed(tokens, weight)
            kwargs.extend(kwargs_of_blocks if not kwargs else ())  # they are the same for all windows
            return hidden

        states = keep(embedded(run_of_input[run_input]) for run_input in distinct_inputs)
        state_of_run = [distinct_inputs.index(run_input) for run_input in inputs]
        for block, (block_runs, next_state_of_run) in enumerate(shared_runs(choices, state_of_run)):
            states = keep(self._outputs(block, block_runs, states, kwargs[block]))
            state_of_run = next_state_of_run
            self.compressible.prefetch(block + 1, choices[0])
        normed = keep(self.lm.final_norm(state) for state in prefetched(states, self.lm.device))
        return [normed[index] for index in state_of_run]

    def _outputs(
        self, block: int, block_runs: Sequence[BlockRun], states: Sequence[Tensor], kwargs: BlockKwargs
    ) -> Iterator[Tensor]:
        """The output of each run. Weights are set once per choice. States run one by one; `Run` explains why."""
        inputs = prefetched([states[run.state] for run in block_runs], self.lm.device)
        for choice, group in groupby(block_runs, key=lambda run: run.choice):
            weights = self.compressible.block_weights(block, choice)
            for run, state in zip(group, inputs, strict=False):
                self.block_tokens += state.shape[:2].numel() * run.is_computed
                yield self.lm.run_block(block, state, kwargs, weights=weights, dropped=choice.dropped)

    def _windows_per_part(self, window: int) -> int:
        """How many windows go through a block at once. Memory limits must not change this, as it changes rounding."""
        return max(1, self.settings.batch_tokens // window)
