"""lm-eval runs tasks on a model in memory, offline; unknown tasks and folders are errors."""

import json
import os
from pathlib import Path

import pytest
import torch

from evopress.evaluation.eval_checks import check_eval
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.lm_eval_tasks import run_tasks
from tests.tiny_models import tiny

TASK = """
task: pairs
dataset_path: json
dataset_kwargs:
  data_files:
    validation: pairs.jsonl
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with one task of six questions, each with two answers."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "pairs.yaml").write_text(TASK)
    questions = [
        {"question": f"the {word} is", "choices": ["in the house", "of a kind"], "label": index % 2}
        for index, word in enumerate(["cat", "dog", "sun", "sea", "tree", "road"])
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    return folder, questions


def plain_accuracy(lm, questions):
    """The share of questions whose right choice has the highest log-likelihood, by whole forward passes."""
    right = 0
    for question in questions:
        scores = []
        for choice in question["choices"]:
            start = lm.tokenizer(question["question"], add_special_tokens=False)["input_ids"]
            whole = lm.tokenizer(f"{question['question']} {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                log_p = lm.model(torch.tensor([whole])).logits.float().log_softmax(-1)[0]
            scores.append(sum(float(log_p[i - 1, whole[i]]) for i in range(len(start), len(whole))))
        right += scores.index(max(scores)) == question["label"]
    return right / len(questions)


@pytest.mark.filterwarnings("ignore")
def test_a_local_task_runs_offline_and_agrees_with_plain_scoring(tasks):
    folder, questions = tasks
    lm = tiny("llama")
    before = os.getcwd()
    scores = run_tasks(lm.model, lm.tokenizer, Eval(tasks=["pairs"], include_path=str(folder), batch_size=2))
    assert os.getcwd() == before
    assert scores["pairs"]["acc"] == pytest.approx(plain_accuracy(lm, questions))


@pytest.mark.filterwarnings("ignore")
def test_the_error_for_an_unknown_task_names_the_most_similar_one(tasks):
    folder, _ = tasks
    with pytest.raises(ValueError, match=r"'pair'.*pairs"):
        check_eval(Eval(tasks=["pair"], include_path=str(folder)))
    check_eval(Eval(tasks=["pairs"], include_path=str(folder)))


def test_a_missing_folder_of_tasks_is_an_error():
    with pytest.raises(ValueError, match=r"eval.include_path is 'nowhere', which is not a folder"):
        check_eval(Eval(include_path="nowhere"))


def test_without_tasks_the_harness_is_not_imported(monkeypatch):
    monkeypatch.setattr("evopress.evaluation.eval_checks.task_manager", None)
    check_eval(Eval(include_path=str(Path.cwd())))
