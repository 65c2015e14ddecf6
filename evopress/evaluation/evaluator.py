"""The fitness of many profiles on one minibatch, sharing what they have in common.

All profiles go through the model together, block by block. Profiles that agree on blocks 0 … b−1 share one state;
at block b the distinct states are grouped by the levels their profiles want there, and each group runs as one batch::

    states ← {embeddings}
    for each block b:
        for each distinct (levels at b):
            set the weights of block b once and run it on all distinct states that want them
    KL of every distinct final state from the dense model's, head in chunks

The result is that of loading each profile and running the whole model, up to float rounding. To the last bit, it
depends on the profile, the windows and the settings only: neither on the other profiles, nor on what ran before, nor on
how many processes share the work. All of them get all results.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from evopress.database.cache import DecodedLevels
from evopress.evaluation.metrics import Divergence, divergences
from evopress.models.language_model import BlockKwargs, LanguageModel
from evopress.runtime import distributed
from evopress.runtime.config_class import config_class
from evopress.search.base import Fitness
from evopress.space.apply import BlockChoice, choices_by_block, embedding_and_head_levels, embedding_and_head_weights
from evopress.space.units import Profile, Space

Wanted = tuple[BlockChoice, int]
"""What a block is run with, and on which state."""


class Run(NamedTuple):
    """A profile, or None for the dense model, on a part of the windows, which always run together and alone.

    Products of other shapes may round otherwise, so parts are cut by settings and window length only.
    """

    part: int
    profile: Profile | None


@config_class
class EvaluatorSettings:
    """What a profile is judged by, and how much memory that may take.

    `fitness`: KL from the dense model (`kl`), KL over its `top_k` most likely tokens (`topk_kl`), or `perplexity`.
    `cache_gb` limits the decoded level weights, `states_gb` the hidden states; those of more calibration tokens lie in
    a file. `batch_tokens` go through a block, and `head_tokens` through the head, at once.
    """

    fitness: Fitness = "kl"
    top_k: int = Field(default=512, gt=0)
    cache_gb: float = Field(default=4.0, gt=0)
    states_gb: float = Field(default=2.0, gt=0)
    batch_tokens: int = Field(default=4096, gt=0)
    head_tokens: int = Field(default=64, gt=0)


class Evaluator:
    """Compares profiles of `space` with the dense model. `weights` is None where no unit has layers (drops)."""

    def __init__(self, lm: LanguageModel, space: Space, weights: DecodedLevels | None, settings: EvaluatorSettings):
        self.lm = lm
        self.space = space
        self.weights = weights
        self.settings = settings
        self.block_tokens = 0
        """Tokens × blocks run here for profiles so far, not counting the dense model, which a cache may spare."""
        self._teacher: OrderedDict[bytes, Tensor] = OrderedDict()

    def evaluate(
        self, profiles: Sequence[Profile], tokens: Int[Tensor, "batch time"], fitness: Fitness | None = None
    ) -> list[float]:
        """Fitness of each profile on one minibatch, lower is better; `fitness` overrides that of the settings."""
        fitness = fitness or self.settings.fitness
        results = self.measure(profiles, tokens, top_k=self.settings.top_k if fitness == "topk_kl" else None)
        return [result.perplexity if fitness == "perplexity" else result.mean_kl for result in results]

    @torch.no_grad()
    def measure(
        self, profiles: Sequence[Profile | None], tokens: Int[Tensor, "batch time"], *, top_k: int | None = None
    ) -> list[Divergence]:
        """KL (over the `top_k` likeliest tokens) and cross-entropy of each profile; None stands for the dense model.

        Collective: all processes ask for the same.
        """
        distinct = sorted(dict.fromkeys(profiles), key=lambda profile: profile or ())  # neighbours have common prefixes
        parts = tokens.split(self._windows_of_part(tokens.shape[1]))
        runs = [Run(part, profile) for part in range(len(parts)) for profile in distinct]
        found: dict[Run, Divergence] = {}
        for of_process in distributed.gather(self._measure_runs(distributed.share(runs), parts, top_k)):
            found.update(of_process)
        nothing = Divergence(0.0, 0.0, 0, 0)
        return [sum((found[Run(part, profile)] for part in range(len(parts))), nothing) for profile in profiles]

    def passes(self, profiles: Sequence[Profile]) -> float:
        """Runs through the whole model that these profiles take when each common prefix runs once."""
        choices = [choices_by_block(self.space, self.lm, profile) for profile in profiles]
        steps = shared_steps(choices, [0] * len(choices))
        return sum(len(choice.dropped) < 2 for wanted, _ in steps for choice, _ in wanted) / self.lm.num_blocks

    def _measure_runs(self, runs: Sequence[Run], parts: Sequence[Tensor], top_k: int | None) -> dict[Run, Divergence]:
        """The same for this process's runs, as many together as memory allows."""
        at_once = self._at_once(parts[0])
        found: dict[Run, Divergence] = {}
        for first in range(0, len(runs), at_once):
            together = runs[first : first + at_once]
            students = self._final_states([run for run in together if run.profile is not None], parts)
            for part, members in groupby(together, key=lambda run: run.part):
                of_part = list(members)
                teacher = self._teacher_states(parts[part])
                states = {run.profile: teacher if run.profile is None else students.pop(0) for run in of_part}
                found.update(zip(of_part, self._diverge(parts[part], teacher, states, top_k), strict=True))
        return found

    def forget_teacher(self) -> None:
        """Free the dense model's states; later comparisons compute them again."""
        self._teacher.clear()

    def _diverge(
        self, tokens: Tensor, teacher: Tensor, students: dict[Profile | None, Tensor], top_k: int | None
    ) -> list[Divergence]:
        tokens = tokens.to(self.lm.device)
        return divergences(
            teacher,
            list(students.values()),
            tokens,
            self.lm.logits,
            student_heads=[self._head(profile) for profile in students],
            top_k=top_k,
            chunk_tokens=self.settings.head_tokens,
        )

    def _final_states(self, runs: Sequence[Run], parts: Sequence[Tensor]) -> list[Float[Tensor, "batch time hidden"]]:
        """Normed final hidden states of each run, block-major."""
        if not runs:
            return []
        choices = [choices_by_block(self.space, self.lm, run.profile) for run in runs]
        inputs = [(run.part, embedding_and_head_levels(self.space, run.profile)[:1]) for run in runs]
        used = sorted(set(inputs))
        embedded = [
            self.lm.embed(
                parts[part].to(self.lm.device), embedding_and_head_weights(self.lm, self.weights, levels).embeddings
            )
            for part, levels in used
        ]
        states, kwargs = [hidden for hidden, _ in embedded], embedded[0][1]
        state_of = [used.index(wanted) for wanted in inputs]
        for block, (wanted, state_of_run) in enumerate(shared_steps(choices, state_of)):
            states, state_of = self._run_block(block, wanted, states, kwargs[block]), state_of_run
        normed = [self.lm.final_norm(state) for state in states]
        return [normed[index] for index in state_of]

    def _run_block(
        self, block: int, wanted: Sequence[Wanted], states: list[Tensor], kwargs: BlockKwargs
    ) -> list[Tensor]:
        """Outputs of a block, whose weights are set once for each choice. States run one by one: see `Run`."""
        outputs = []
        for choice, members in groupby(wanted, key=lambda want: want[0]):
            weights = {local: self._weight(block, local, level) for local, level in choice.levels}
            for _, index in members:
                outputs.append(self.lm.run_block(block, states[index], kwargs, weights=weights, dropped=choice.dropped))
                self.block_tokens += states[index].shape[:2].numel() * (len(choice.dropped) < 2)
        return outputs

    def _head(self, profile: Profile | None) -> Callable[[Tensor], Tensor]:
        return partial(
            self.lm.logits,
            weight=embedding_and_head_weights(
                self.lm, self.weights, embedding_and_head_levels(self.space, profile)
            ).head,
        )

    def _weight(self, block: int, local: str, level: int) -> Tensor:
        if self.weights is None:
            raise ValueError("this space has layers but no database was given")
        return self.weights.get(block, self.lm.layer_name(block, local), level)

    def _teacher_states(self, tokens: Tensor) -> Float[Tensor, "batch time hidden"]:
        """The dense model's normed final hidden states on one part of the windows, from the cache where it was seen.

        It runs as a profile does, whose distance from it would else be rounding in part: 0.002 in bfloat16.
        """
        key = hashlib.sha256(tokens.cpu().numpy().tobytes()).digest()
        if key not in self._teacher:
            block_tokens = self.block_tokens
            (self._teacher[key],) = self._final_states([Run(0, None)], [tokens])
            self.block_tokens = block_tokens
        states = self._teacher[key]
        self._forget_teachers(self.settings.states_gb * 1e9 / 2)
        return states

    def _forget_teachers(self, limit_bytes: float) -> None:
        total = sum(state.nbytes for state in self._teacher.values())
        while total > limit_bytes:
            total -= self._teacher.popitem(last=False)[1].nbytes

    def _windows_of_part(self, window: int) -> int:
        """How many windows go through a block at once: `batch_tokens`, within half of `states_gb`."""
        states = int(self.settings.states_gb * 1e9 / 2 / (2 * self._state_bytes(window)))
        return max(1, min(self.settings.batch_tokens // window, states))

    def _at_once(self, part: Tensor) -> int:
        """How many runs keep their states around a block within half of `states_gb`."""
        return max(1, int(self.settings.states_gb * 1e9 / 2 / (2 * self._state_bytes(part.numel()))))

    def _state_bytes(self, num_tokens: int) -> int:
        return num_tokens * self.lm.hidden_size * self.lm.dtype.itemsize


def shared_steps(
    choices: Sequence[list[BlockChoice]], starts: Sequence[int]
) -> Iterator[tuple[list[Wanted], list[int]]]:
    """For each block what is to be run, by choice, and which of its outputs each profile goes on with.

    `starts` are the states from which the profiles, given by their choices, set out.
    """
    state_of = list(starts)
    for block in range(max(map(len, choices), default=0)):
        wanted = [(choice[block], state) for choice, state in zip(choices, state_of, strict=True)]
        distinct = sorted(set(wanted), key=lambda want: (want[0].levels, sorted(want[0].dropped), want[1]))
        index_of = {want: index for index, want in enumerate(distinct)}
        state_of = [index_of[want] for want in wanted]
        yield distinct, state_of
