"""Scores keep the names that lm-eval gives them, in the order of the task, and groups stand for their members."""

import pytest

from evopress.evaluation.candidates import Candidate
from evopress.evaluation.results_table import as_table
from evopress.evaluation.task_scores import columns, metric_keys, scores_of, short_key

ARITHMETIC = {
    "name": "gsm8k",
    "alias": "gsm8k",
    "sample_len": 1319,
    "exact_match,strict-match": 0.1,
    "exact_match_stderr,strict-match": 0.01,
    "exact_match,flexible-extract": 0.2,
    "exact_match_stderr,flexible-extract": 0.02,
}


def test_a_task_keeps_a_score_for_each_of_its_filters():
    assert scores_of("gsm8k", {"results": {"gsm8k": ARITHMETIC}}) == {
        "exact_match,strict-match": 0.1,
        "exact_match_stderr,strict-match": 0.01,
        "exact_match,flexible-extract": 0.2,
        "exact_match_stderr,flexible-extract": 0.02,
    }


def test_the_first_score_is_the_first_metric_of_the_task():
    entry = {"acc,none": 0.5, "acc_stderr,none": "N/A", "acc_norm,none": 0.6, "acc_norm_stderr,none": 0.01}
    order = {"arc": {"acc_norm": True, "acc": True}}
    scores = scores_of("arc", {"results": {"arc": entry}, "higher_is_better": order})
    assert list(scores) == ["acc_norm,none", "acc_norm_stderr,none", "acc,none"]


def test_a_standard_error_is_no_metric():
    assert metric_keys(ARITHMETIC)[3:] == ["exact_match,strict-match", "exact_match,flexible-extract"]
    assert metric_keys(["acc_stderr,none"]) == ["acc_stderr,none"]


@pytest.mark.parametrize(
    ("key", "short"),
    [
        ("acc,none", "acc"),
        ("acc_stderr,none", "acc_stderr"),
        ("exact_match,strict-match", "exact_match/strict-match"),
        ("acc", "acc"),
    ],
)
def test_short_keys_leave_out_the_filter_none(key, short):
    assert short_key(key) == short


def test_a_group_with_a_score_stands_for_its_members_and_any_other_group_is_replaced_by_them():
    results = {
        "results": {
            "mmlu": {"acc,none": 0.4},
            "stem": {"acc,none": 0.3},
            "physics": {"acc,none": 0.2},
            "loose": {"alias": "loose"},
            "piqa": {"acc,none": 0.7},
            "arc": {"acc,none": 0.6},
        },
        "group_subtasks": {"mmlu": ["stem"], "stem": ["physics"], "loose": ["piqa"]},
    }
    assert columns(results) == {"mmlu": {"acc,none": 0.4}, "piqa": {"acc,none": 0.7}, "arc": {"acc,none": 0.6}}


def candidate(**tasks):
    return Candidate(10**6, 3.0, 3.1, {"pydoc": 12.0}, {"pydoc": 0.1}, tasks=tasks)


def test_the_table_shows_the_first_metric_of_each_task_with_its_standard_error():
    scores = {
        "arc": {"acc,none": 0.51239, "acc_stderr,none": 0.0112, "acc_norm,none": 0.7},
        "rolling": {"word_perplexity,none": 153.653, "bits_per_byte,none": 1.6},
    }
    table = as_table({"dense": candidate(**scores), "searched": candidate()})
    header, _, dense, searched = table.splitlines()
    assert header.split()[-4:] == ["arc", "acc", "rolling", "word_perplexity"]
    assert dense.split()[-4:] == ["0.512", "±", "0.011", "153.7"]
    assert searched.split()[-2:] == ["–", "–"]
    assert "nan" not in table


def test_trackers_get_names_without_commas():
    names = candidate(gsm8k={"exact_match,strict-match": 0.1}, piqa={"acc,none": 0.7, "acc_stderr,none": 0.1}).metrics()
    assert {"gsm8k/exact_match/strict-match", "piqa/acc", "piqa/acc_stderr"} <= names.keys()


def test_a_kl_that_is_below_zero_by_rounding_is_shown_as_zero():
    rounded = Candidate(10**6, 3.0, 3.1, {"pydoc": 12.0}, {"pydoc": -1e-9})
    assert as_table({"dense": rounded}).splitlines()[-1].split()[-1] == "0.0000"
