"""KL, top-k KL and cross-entropy equal the plain formulas in float64, whatever the chunks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.evaluation.metrics import Divergence, FinalStates, divergences
from tests import plain

WINDOWS, TIME, HIDDEN, VOCABULARY = 3, 11, 6, 40


def compared(head, teacher, students, tokens, **settings):
    """The divergence of each student, all with the same head."""
    return divergences(
        FinalStates(teacher, head), [FinalStates(student, head) for student in students], tokens=tokens, **settings
    )


def case(seed: int = 0, spread: float = 2.0):
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
    head.weight.data = spread * torch.randn(VOCABULARY, HIDDEN, generator=generator)
    teacher, *students = torch.randn(4, WINDOWS, TIME, HIDDEN, generator=generator)
    tokens = torch.randint(VOCABULARY, (WINDOWS, TIME), generator=generator)
    return head.requires_grad_(False), teacher, students, tokens


@pytest.mark.parametrize("top_k", [None, 1, 5, VOCABULARY, 10 * VOCABULARY])
@pytest.mark.parametrize("spread", [0.1, 2.0, 30.0])
def test_divergences_equal_the_plain_formulas(top_k, spread):
    head, teacher, students, tokens = case(spread=spread)
    results = compared(head, teacher, students, tokens, top_k=top_k)
    for student, result in zip(students, results, strict=True):
        kl = plain.kl(head(teacher), head(student), top_k)
        entropy = plain.cross_entropies(head(student), tokens)
        assert result.kl == pytest.approx(float(kl.sum()), rel=1e-5, abs=1e-6)
        assert result.cross_entropy == pytest.approx(float(entropy.sum()), rel=1e-5)
        assert (result.num_tokens, result.num_targets) == (kl.numel(), entropy.numel()) == (33, 30)
        assert result.mean_kl == pytest.approx(result.kl / 33)
        assert result.perplexity == pytest.approx(math.exp(float(entropy.mean())), rel=1e-4)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.sampled_from([None, 3]))
def test_the_chunk_size_does_not_matter(chunk_tokens, top_k):
    head, teacher, students, tokens = case()
    whole = compared(head, teacher, students, tokens, top_k=top_k, chunk_tokens=10**6)
    parts = compared(head, teacher, students, tokens, top_k=top_k, chunk_tokens=chunk_tokens)
    assert [result.kl for result in parts] == pytest.approx([result.kl for result in whole], rel=1e-5)
    assert [result.cross_entropy for result in parts] == pytest.approx(
        [result.cross_entropy for result in whole], rel=1e-5
    )


def test_logits_are_computed_by_the_chunk_and_those_of_the_teacher_once():
    head, teacher, students, tokens = case()
    seen: list[int] = []

    def watched(states):
        seen.append(len(states))
        return head(states)

    compared(watched, teacher, students, tokens, chunk_tokens=10)
    assert seen == [size for size in (10, 10, 10, 3) for _ in range(1 + len(students))]


@pytest.mark.parametrize("top_k", [None, 5])
def test_the_kl_is_zero_from_the_same_model_and_positive_from_others(top_k):
    head, teacher, students, tokens = case()
    same, other = compared(head, teacher, [teacher, students[0]], tokens, top_k=top_k)
    assert same.kl == 0 and other.kl > 1


def test_divergences_of_windows_add_up():
    head, teacher, students, tokens = case()
    whole = compared(head, teacher, students[:1], tokens)[0]
    parts = [compared(head, teacher[i : i + 1], [students[0][i : i + 1]], tokens[i : i + 1])[0] for i in range(3)]
    added = sum(parts[1:], start=parts[0])
    assert (added.num_tokens, added.num_targets) == (whole.num_tokens, whole.num_targets)
    assert added.kl == pytest.approx(whole.kl, rel=1e-6)
    assert added.perplexity == pytest.approx(whole.perplexity, rel=1e-6)


def test_half_precision_states_are_compared_in_float32():
    head, teacher, students, tokens = case()
    head = head.bfloat16()
    states = [state.bfloat16() for state in (teacher, students[0])]
    result = compared(head, states[0], [states[1]], tokens)[0]
    kl = plain.kl(*(head(state).float() for state in states))
    assert result.kl == pytest.approx(float(kl.sum()), rel=1e-5)


def test_perplexity_beyond_the_float_range_is_infinite():
    assert Divergence(0.0, 1e6, 2, 1).perplexity == math.inf
    assert Divergence(0.0, 699.0, 2, 1).perplexity == pytest.approx(math.exp(699))
