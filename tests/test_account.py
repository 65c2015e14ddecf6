"""What a question costs besides arithmetic stays within limits: launches, waits of the host, copies, decoded levels.

Counted on a CPU by `experiments.speed.account`, with blocks and states that count as stored on the host.
"""

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
import torch

from evopress.compressors.rtn import RTN
from evopress.evaluation.evaluator import Evaluator
from evopress.evaluation.shared_prefixes import shared_runs
from evopress.evaluation.switch_effects import switch_effects
from evopress.models.language_model import LanguageModel
from evopress.space.units import Profile
from experiments.speed.account import (
    BATCH_TOKENS,
    WINDOW,
    Account,
    all_offloaded,
    counted,
    evaluator_of,
    random_profiles,
)
from tests.tiny_models import tiny, token_windows

BITS = RTN(bits=(2, 3, 4), group_size=32)
WINDOWS_PER_PART = BATCH_TOKENS // WINDOW
HOST = 1e-9
"""So little memory for states that all of them are on the host."""


def evaluator_in(folder, states_gb: float = 2.0) -> Evaluator:
    return evaluator_of(tiny("llama"), BITS, folder, states_gb=states_gb)


def cost(evaluator: Evaluator, question: Callable[[], object]) -> Account:
    """Of the second time, because levels are checked on the host when they are read first."""
    question()
    evaluator.forget_teacher()
    with counted() as account:
        question()
    return account


def cost_of_fitness(evaluator: Evaluator, profiles: list[Profile], num_parts: int) -> Account:
    tokens = token_windows(num_parts * WINDOWS_PER_PART, WINDOW)
    return cost(evaluator, partial(evaluator.evaluate, profiles, tokens))


def cost_of_table(evaluator: Evaluator, profile: Profile, num_parts: int, draws: int = 2) -> Account:
    parts = [token_windows(2, WINDOW, seed) for seed in range(num_parts)]
    memory = evaluator.state_memory
    make = partial(switch_effects, evaluator.compressible, profile, parts=parts, draws=draws, memory=memory)
    return cost(evaluator, lambda: make(rng=Random(0)))


def num_runs(evaluator: Evaluator, profiles: list[Profile]) -> list[int]:
    """How many runs each block has, for one part of the tokens."""
    choices = [evaluator.compressible.choices(profile) for profile in profiles]
    return [len(runs) for runs, _ in shared_runs(choices, [0] * len(choices))]


def distinct_levels(profiles: list[Profile]) -> int:
    return sum(len(set(levels)) for levels in zip(*profiles, strict=True))


def block_bytes(lm: LanguageModel) -> int:
    return sum(parameter.nbytes for block in lm.blocks for parameter in block.parameters())


def norm_bytes(lm: LanguageModel) -> int:
    return sum(
        parameter.nbytes for block in lm.blocks for name, parameter in block.named_parameters() if "norm" in name
    )


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("num_profiles", [1, 6])
def test_the_host_waits_for_each_part_of_the_tokens_but_not_for_blocks_or_profiles(num_parts, num_profiles, tmp_path):
    evaluator = evaluator_in(tmp_path)
    profiles = random_profiles(evaluator.space, num_profiles)
    account = cost_of_fitness(evaluator, profiles, num_parts)
    results, masks = 2, 4  # transformers looks whether texts are packed, at two calls of each of the two models
    assert account.waits == (results + masks) * num_parts


def test_a_table_waits_only_for_the_masks_of_transformers(tmp_path):
    evaluator = evaluator_in(tmp_path)
    (profile,) = random_profiles(evaluator.space, 1)
    assert cost_of_table(evaluator, profile, num_parts=3).waits == 4 * 3


def test_a_question_copies_and_decodes_each_level_once(tmp_path):
    evaluator = evaluator_in(tmp_path, HOST)
    profiles = random_profiles(evaluator.space, 6)
    account = cost_of_fitness(evaluator, profiles, num_parts=3)
    assert account.decodes == distinct_levels(profiles)
    sizes = {
        (index, level): evaluator.space.units[index].levels[level].size_bytes
        for profile in profiles
        for index, level in enumerate(profile)
    }
    assert account.level_bytes == sum(sizes.values())


@pytest.mark.parametrize("states_gb", [2.0, HOST])
def test_offloaded_blocks_are_copied_once_and_states_on_the_host_once_for_each_run(states_gb, tmp_path):
    evaluator, num_parts = evaluator_in(tmp_path, states_gb), 3
    lm, profiles = evaluator.lm, random_profiles(evaluator.space, 6)
    with all_offloaded():
        account = cost_of_fitness(evaluator, profiles, num_parts)
    blocks = block_bytes(lm) + norm_bytes(lm)  # all of the dense model, and what profiles do not replace
    state = BATCH_TOKENS * lm.hidden_size * lm.dtype.itemsize
    runs = num_runs(evaluator, profiles)
    states = sum(runs) + runs[-1] + lm.num_blocks + 1  # of blocks and of the norm, for profiles and the dense model
    assert account.copied_bytes == blocks + num_parts * states * state * (states_gb == HOST)


def test_a_table_copies_an_offloaded_block_once_forward_and_once_backward(tmp_path):
    evaluator = evaluator_in(tmp_path)
    lm, (profile,) = evaluator.lm, random_profiles(evaluator.space, 1)
    with all_offloaded():
        account = cost_of_table(evaluator, profile, num_parts=3)
    assert account.copied_bytes <= block_bytes(lm) + 2 * norm_bytes(lm)


def launches_per_run(evaluator: Evaluator, num_profiles: int) -> float:
    """Launches that a further part of the tokens adds, for each run of a block, without decoding."""
    profiles = random_profiles(evaluator.space, num_profiles)
    few, many = (cost_of_fitness(evaluator, profiles, num_parts).launches for num_parts in (1, 2))
    return (many - few) / (sum(num_runs(evaluator, profiles)) + evaluator.lm.num_blocks)


def test_a_run_of_a_block_launches_no_more_than_the_block_has_operations(tmp_path):
    evaluator = evaluator_in(tmp_path)
    tokens = token_windows(WINDOWS_PER_PART, WINDOW)
    hidden, kwargs = evaluator.lm.embed(tokens)
    with counted() as block, torch.no_grad():
        evaluator.lm.run_block(0, hidden, kwargs[0])
    assert 20 < block.launches < 80
    assert launches_per_run(evaluator, 24) < 1.4 * block.launches  # embeddings, norm, head and KL included


def test_the_account_counts():
    with counted() as account:
        (torch.ones(3) + 1).view(3, 1)[:2].sum().item()
        torch.ones(3).tolist()
        torch.ones(3)[torch.ones(3) > 0].nonzero()
    assert account.waits == 1 + 1 + 2 and account.launches >= 9
