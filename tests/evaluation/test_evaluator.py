"""The evaluator measures the same as running each profile alone as a whole model, whatever profiles share."""

from pathlib import Path
from random import Random

import pytest
import torch

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.compressors.magnitude import Magnitude
from evopress.compressors.rtn import RTN
from evopress.database.cache import DecodedLevels
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from evopress.search.drops import dropped
from evopress.space.apply import applied
from evopress.space.build import drop_space, layer_space
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile, Space
from tests import plain
from tests.marks import slow_except
from tests.tiny_models import FAMILIES, NUM_BLOCKS, SLIDING_WINDOW, random_model, tiny, token_windows, tokenizer

CLOSE = {"rel": 2e-4, "abs": 2e-6}
"""float32 on both sides, in products of other shapes."""


class RoundsEmbeddingAndHead(RTN):
    """Embeddings and head have levels too."""

    compresses_embeddings = True


COMPRESSORS: dict[str, Compressor | Drop] = {
    "subblock": Drop(),
    "block": Drop(granularity="block"),
    "sparsity": Magnitude(base=0.5, num_levels=2, step=400, value_dtype="float32"),
    "bits": RTN(bits=(2, 3, 4), group_size=32),
    "embedding_and_head": RoundsEmbeddingAndHead(bits=(2, 3, 4), group_size=32),
    "joint": RoundsEmbeddingAndHead(bits=(2, 3, 4), group_size=32),
}
LIMITS = {
    "ample": EvaluatorSettings(),
    "one state at a time": EvaluatorSettings(states_gb=3e-5, cache_gb=4e-5, batch_tokens=30, head_tokens=7),
    "few states, small batches": EvaluatorSettings(states_gb=1.3e-4, cache_gb=1e-4, batch_tokens=50, head_tokens=50),
    "small batches": EvaluatorSettings(batch_tokens=50),
}


class Case:
    """A model, its space and its levels, kept in memory and in a database."""

    def __init__(
        self, lm: LanguageModel, compressor: Compressor | Drop, folder: Path, settings: SpaceSettings | None = None
    ):
        self.lm = lm
        self.levels: plain.Levels = {}
        if isinstance(compressor, Drop):
            self.space = drop_space(lm, compressor)
        else:
            self.space = layer_space(lm, compressor, settings or SpaceSettings())
            self.levels = plain.layer_levels(lm, compressor)
            self.database = plain.filled_database(lm, self.levels, folder)

    def evaluator(self, settings: EvaluatorSettings | None = None) -> Evaluator:
        settings = settings or EvaluatorSettings()
        limit = int(settings.cache_gb * 1e9)
        device = torch.device("cpu")
        weights = (
            DecodedLevels(self.database, limit_bytes=limit, dtype=torch.float32, device=device) if self.levels else None
        )
        return Evaluator(self.lm, self.space, weights, settings)


def profiles_of(space: Space, count: int, seed: int = 0) -> list[Profile]:
    """The least and the most compressed profile, random ones, and a copy of the last one that differs at the end."""
    rng = Random(seed)
    profiles = [space.uniform(0), space.uniform(99)]
    profiles += [tuple(rng.randrange(len(unit.levels)) for unit in space.units) for _ in range(count - 3)]
    last = profiles[-1]
    return [*profiles, (*last[:-1], (last[-1] + 1) % len(space.units[-1].levels))]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    made: dict[tuple[str, str], Case] = {}

    def of(family: str, kind: str) -> Case:
        if (family, kind) not in made:
            joint = SpaceSettings(trade="any", drops="subblock") if kind == "joint" else None
            folder = tmp_path_factory.mktemp(f"{family}-{kind}")
            made[family, kind] = Case(tiny(family), COMPRESSORS[kind], folder, joint)
        return made[family, kind]

    return of


@pytest.mark.parametrize("kind", COMPRESSORS)
@pytest.mark.parametrize("family", slow_except(FAMILIES, ("llama", "gemma3_text", "opt")))
def test_every_profile_measures_as_it_does_alone_in_a_whole_model(family, kind, cases):
    case = cases(family, kind)
    profiles = profiles_of(case.space, 5)
    tokens = token_windows(3, 2 * SLIDING_WINDOW + 5)
    kls, perplexities = plain.kl_and_perplexity(case.lm, case.space, case.levels, profiles, tokens)
    assert max(kls) > 0.05
    for settings in (LIMITS["ample"], LIMITS["few states, small batches"]):
        compared = case.evaluator(settings).measure(profiles, tokens)
        assert [result.mean_kl for result in compared] == pytest.approx(kls, **CLOSE)
        assert [result.perplexity for result in compared] == pytest.approx(perplexities, **CLOSE)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_the_plain_evaluation_of_the_benchmark_gives_the_same_fitness(kind, cases):
    case, tokens = cases("llama", kind), token_windows(3, 20)
    profiles, evaluator = profiles_of(case.space, 4), case.evaluator()
    expected = plain.one_at_a_time(case.lm, case.space, evaluator.weights, profiles, tokens)
    assert evaluator.evaluate(profiles, tokens) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("widths", [(2, 3), (2, 3, 4, 5, 6)])
def test_the_memory_for_decoded_levels_is_the_limit_or_that_of_a_block(widths, tmp_path):
    limit = EvaluatorSettings(cache_gb=1.5e-4)
    case = Case(tiny("llama"), RTN(bits=widths, group_size=32), tmp_path)
    evaluator, held = case.evaluator(limit), []
    for seed in range(5):
        evaluator.evaluate(profiles_of(case.space, 6, seed), token_windows(2, 20))
        held.append(evaluator.weights.kept_bytes)
    of_all_blocks = sum(weight.dense().nbytes for levels in case.levels.values() for weight in levels)
    assert 150_000 < max(held) <= max(150_000, of_all_blocks / NUM_BLOCKS) < of_all_blocks


@pytest.mark.parametrize("fitness", ["kl", "topk_kl", "perplexity"])
def test_each_fitness_equals_its_formula(fitness, cases):
    case = cases("llama", "bits")
    profiles, tokens = profiles_of(case.space, 4), token_windows(2, 20)
    dense = plain.logits(case.lm.model, tokens)
    others = [
        plain.logits(plain.assembled_model(case.lm, case.space, case.levels, profile), tokens) for profile in profiles
    ]
    expected = {
        "kl": lambda other: plain.kl(dense, other).mean(),
        "topk_kl": lambda other: plain.kl(dense, other, top_k=5).mean(),
        "perplexity": lambda other: plain.cross_entropies(other, tokens).mean().exp(),
    }[fitness]
    values = case.evaluator(EvaluatorSettings(fitness=fitness, top_k=5)).evaluate(profiles, tokens)
    assert values == pytest.approx([float(expected(other)) for other in others], **CLOSE)
    assert case.evaluator(EvaluatorSettings(top_k=5)).evaluate(profiles, tokens, fitness) == values


@pytest.mark.parametrize("limits", slow_except(LIMITS, ("ample", "small batches")))
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_fitness_does_not_depend_on_the_other_profiles(family, limits, cases):
    case, settings = cases(family, "bits"), LIMITS[limits]
    profiles, tokens = profiles_of(case.space, 5), token_windows(3, 20)
    together = case.evaluator(settings).evaluate(profiles, tokens)
    alone = [case.evaluator(settings).evaluate([profile], tokens)[0] for profile in profiles]
    backwards = case.evaluator(settings).evaluate(profiles[::-1], tokens)[::-1]
    assert together == alone == backwards


@pytest.mark.slow
@pytest.mark.parametrize("limits", LIMITS)
def test_a_fitness_does_not_depend_on_earlier_evaluations(limits, cases):
    case, settings = cases("gemma3_text", "sparsity"), LIMITS[limits]
    profiles, tokens = profiles_of(case.space, 6), token_windows(3, 20)
    fresh = case.evaluator(settings).evaluate(profiles, tokens)
    used = case.evaluator(settings)
    used.evaluate(profiles_of(case.space, 7, seed=1), token_windows(4, 20, seed=1))
    used.evaluate(profiles[2:4], tokens[1:])
    assert used.evaluate(profiles, tokens) == fresh
    assert used.evaluate(profiles, tokens) == fresh


def test_the_fitness_is_the_mean_over_windows(cases):
    case = cases("qwen3", "bits")
    (profile,), tokens = profiles_of(case.space, 4)[2:3], token_windows(3, 20)
    evaluator = case.evaluator()
    apart = [evaluator.evaluate([profile], window)[0] for window in tokens.split(1)]
    assert evaluator.evaluate([profile], tokens)[0] == pytest.approx(sum(apart) / 3, **CLOSE)


@pytest.mark.parametrize("limits", LIMITS)
def test_equal_profiles_get_equal_fitness(limits, cases):
    case, settings = cases("llama", "bits"), LIMITS[limits]
    first, second = profiles_of(case.space, 5)[2:4]
    values = case.evaluator(settings).evaluate([first, second, first, tuple(first)], token_windows(3, 20))
    assert values[0] == values[2] == values[3] != values[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_model_has_zero_kl_from_itself(family, cases):
    case = cases(family, "subblock")
    tokens = token_windows(2, 20)
    evaluator = case.evaluator()
    dense, kept = evaluator.measure([None, case.space.uniform(0)], tokens)
    assert dense.mean_kl == pytest.approx(0, abs=1e-9) and kept.mean_kl == dense.mean_kl
    expected = plain.cross_entropies(plain.logits(case.lm.model, tokens), tokens)
    assert dense.cross_entropy == pytest.approx(float(expected.sum()), **CLOSE)
    assert (dense.num_tokens, dense.num_targets) == (40, 38)


def block_tokens(case: Case, profiles: list[Profile | None], tokens: torch.Tensor) -> int:
    """Tokens × blocks that these profiles cost once the teacher is cached."""
    evaluator = case.evaluator()
    evaluator.measure([], tokens)
    evaluator.measure([None], tokens)
    before = evaluator.block_tokens
    evaluator.measure(profiles, tokens)
    return evaluator.block_tokens - before


def test_dropped_blocks_cost_nothing(cases):
    case, tokens = cases("llama", "block"), token_windows(2, 20)
    profiles: dict[Profile, int] = {(0, 0, 0): 3, (0, 1, 0): 2, (1, 1, 0): 1, (1, 1, 1): 0}
    for profile, blocks in profiles.items():
        assert block_tokens(case, [profile], tokens) == 40 * blocks


def test_a_block_with_one_dropped_sub_block_costs_a_whole_block(cases):
    case, tokens = cases("llama", "subblock"), token_windows(2, 20)
    assert block_tokens(case, [(1, 0, 0, 1, 0, 0)], tokens) == 40 * 3


def test_a_shared_prefix_runs_once(cases):
    case, tokens = cases("llama", "bits"), token_windows(2, 20)
    first = case.space.uniform(1)
    last_differs = (*first[:-1], 2)
    first_differs = (2, *first[1:])
    assert block_tokens(case, [first, first], tokens) == 40 * NUM_BLOCKS
    assert block_tokens(case, [first, last_differs], tokens) == 40 * (NUM_BLOCKS + 1)
    assert block_tokens(case, [first, first_differs], tokens) == 40 * 2 * NUM_BLOCKS


def test_profiles_share_blocks_if_only_their_heads_differ_but_not_if_their_embeddings_do(cases):
    case, tokens = cases("llama", "embedding_and_head"), token_windows(2, 20)
    first = case.space.uniform(1)
    assert block_tokens(case, [first, (*first[:-1], 2)], tokens) == 40 * NUM_BLOCKS
    assert block_tokens(case, [first, (2, *first[1:])], tokens) == 40 * 2 * NUM_BLOCKS


def test_levels_inside_a_dropped_sub_block_cause_no_further_run(cases):
    case, tokens = cases("llama", "joint"), token_windows(2, 20)
    last = list(case.space.children)[-1]  # an MLP, with the head behind it
    profile = dropped(case.space, case.space.uniform(1), last)
    other = (*profile[:-2], 2, profile[-1])
    assert case.space.parents[-2] == last and case.space.normalized(other) == profile
    assert block_tokens(case, [profile, other], tokens) == 40 * NUM_BLOCKS
    assert len(set(case.evaluator().evaluate([profile, other], tokens))) == 1


@pytest.mark.parametrize("kind", ["embedding_and_head", "joint"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_applying_a_profile_gives_the_model_that_is_evaluated(family, kind, cases):
    """gemma2 has a head tied to the embeddings, and a soft cap."""
    case, tokens = cases(family, kind), token_windows(2, 20)
    (profile,) = profiles_of(case.space, 4)[2:3]
    evaluator = case.evaluator()
    dense = plain.logits(case.lm.model, tokens)
    with applied(case.lm, case.space, evaluator.weights, profile) as model:
        other = plain.logits(model, tokens)
    expected = float(plain.kl(dense, other).mean())
    assert evaluator.evaluate([profile], tokens)[0] == pytest.approx(expected, **CLOSE)


def test_profiles_run_apart_from_the_first_drop_in_which_they_differ(cases):
    case, tokens = cases("llama", "block"), token_windows(2, 20)
    assert block_tokens(case, [(0, 0, 0), (1, 0, 0)], tokens) == 40 * 5


def test_teacher_states_are_cached_within_the_memory_limit(cases):
    case, tokens = cases("llama", "subblock"), token_windows(3, 20)
    state_bytes = 20 * case.lm.hidden_size * 4
    evaluator = case.evaluator(EvaluatorSettings(states_gb=2 * 2 * state_bytes / 1e9))  # half of it is for the teacher
    evaluator.evaluate([case.space.uniform(0)], tokens)
    assert evaluator._teacher_cache.size_bytes <= 2 * state_bytes
    ample = case.evaluator()
    ample.evaluate([case.space.uniform(0)], tokens)
    before = ample.block_tokens
    ample.evaluate([case.space.uniform(1)], tokens)
    assert ample.block_tokens == before  # everything is dropped, and the teacher is cached


def test_the_states_of_profiles_may_take_what_those_of_the_dense_model_leave(cases):
    case, tokens = cases("llama", "subblock"), token_windows(3, 20)
    teacher_bytes = 3 * 20 * case.lm.hidden_size * 4
    for limit, left in ((10 * teacher_bytes, 9 * teacher_bytes), (1.5 * teacher_bytes, 0.75 * teacher_bytes)):
        evaluator = case.evaluator(EvaluatorSettings(states_gb=limit / 1e9))
        assert evaluator.state_memory.limit_bytes == pytest.approx(limit)
        evaluator.evaluate([case.space.uniform(0)], tokens[:2])
        evaluator.evaluate([case.space.uniform(0)], tokens[2:])
        assert evaluator.state_memory.limit_bytes >= left * (1 - 1e-9)


def test_states_of_the_dense_model_on_other_windows_make_room_for_profiles(cases):
    case, state_bytes = cases("llama", "bits"), 2 * 20 * cases("llama", "bits").lm.hidden_size * 4
    profiles = profiles_of(case.space, 4)
    evaluator = case.evaluator(EvaluatorSettings(states_gb=10 * state_bytes / 1e9))
    for seed in range(4):
        evaluator.evaluate(profiles[:1], token_windows(2, 20, seed))
    assert evaluator._teacher_cache.size_bytes == 4 * state_bytes
    evaluator.evaluate(profiles, token_windows(2, 20, 4))
    assert evaluator._teacher_cache.size_bytes == 2 * state_bytes  # four profiles need eight parts of the memory
    assert evaluator.state_memory.limit_bytes == pytest.approx(8 * state_bytes)


def test_evaluation_does_not_change_the_model(cases):
    for kind in ("subblock", "bits", "embedding_and_head"):
        case = cases("opt", kind)
        before = {name: tensor.clone() for name, tensor in case.lm.model.state_dict().items()}
        modules = list(case.lm.model.named_modules())
        case.evaluator().evaluate(profiles_of(case.space, 4), token_windows(2, 20))
        assert list(case.lm.model.named_modules()) == modules
        after = case.lm.model.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_layers_need_a_database(cases):
    case = cases("llama", "bits")
    with pytest.raises(ValueError, match="no database"):
        Evaluator(case.lm, case.space, None, EvaluatorSettings()).evaluate([case.space.uniform(0)], token_windows(1, 9))


@pytest.mark.parametrize("change", [{"top_k": 0}, {"states_gb": 0}, {"batch_tokens": -1}, {"fitness": "mse"}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        EvaluatorSettings(**change)


@pytest.mark.parametrize("limits", LIMITS)
def test_the_dense_model_has_zero_kl_from_itself_in_bfloat16(limits):
    lm = wrap_model(random_model("llama").to(torch.bfloat16), tokenizer(), "tiny")
    evaluator = Evaluator(lm, drop_space(lm, Drop()), None, LIMITS[limits])
    profiles = [None, evaluator.space.uniform(0)]
    for compared in (
        evaluator.measure(profiles, token_windows(3, 20)),
        evaluator.measure([None], token_windows(5, 20)),
    ):
        assert [result.mean_kl for result in compared] == [0.0] * len(compared)
