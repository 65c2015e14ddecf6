"""What would stop a task after the search is an error at the start: no model runs here."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.task_rehearsal import NUM_EXAMPLES, rehearse_tasks
from tests.evaluation.task_files import ACCURACY, CHOICE, COMMON, write_tasks
from tests.tiny_models import random_model, tiny, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("local") / "tasks"
        write_tasks(folder)
        (folder / "scoring.py").write_text(
            "import os\n\n"
            "def with_package(doc, results):\n    import not_installed_anywhere\n\n"
            "def of_an_answer(doc, results):\n    return {'acc': results[0][0] > 1}\n"
        )
        scored = f"{COMMON}{CHOICE}{ACCURACY}".replace("multiple_choice", "generate_until")
        scored += "generation_kwargs: {max_gen_toks: 2, until: [x]}\n"
        for function in ("with_package", "of_an_answer"):
            (folder / f"{function}.yaml").write_text(
                f"task: {function}\nprocess_results: !function scoring.{function}{scored}"
            )
        yield folder


def rehearse(folder: Path, task: str, *, special: dict[str, str] | None = None, **settings: object) -> None:
    made = tokenizer()
    if special is not None:
        made = PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, **special)
    lm = replace(tiny("llama"), model=random_model("llama").to("meta"), tokenizer=made)  # cannot compute anything
    rehearse_tasks(Eval(tasks=[task], include_path=str(folder), **settings), lm)


@pytest.mark.parametrize("task", ["pairs", "whole", "both", "answers", "rolling"])
def test_tasks_that_run_later_are_accepted_without_running_the_model(task, folder):
    rehearse(folder, task, num_fewshot=2)


def test_only_a_few_examples_are_read(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "evopress.evaluation.task_rehearsal.Rehearsal.loglikelihood_rolling",
        lambda self, requests: asked.extend(requests) or [0.0] * len(requests),
    )
    rehearse(folder, "rolling")
    assert len(asked) == NUM_EXAMPLES


@pytest.mark.counts("late errors found early")
@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("pairs", {"num_fewshot": 6}, r"cannot write its prompts .*larger than population.*: lower eval\.num_fewshot"),
        ("answers", {"gen_kwargs": {"temperatur": 1}}, r"not used by the model: \['temperatur'\].*change eval\.gen_kw"),
        ("answers", {"gen_kwargs": {"num_beams": 0}}, r"refuses its generation settings .*change eval\.gen_kwargs"),
        ("answers", {"gen_kwargs": {"max_gen_toks": 256}}, r"up to 256 tokens, .*may have 256 .*max_gen_toks: NUMBER"),
        ("pairs", {"special": {}}, "the tokenizer has no token that begins or ends a text"),
        ("rolling", {"special": {}}, "the tokenizer has no token that begins or ends a text"),
        ("answers", {"special": {"bos_token": "<s>"}}, r"the tokenizer has no token that ends a text \(eos_token\)"),
        ("with_package", {}, "needs a package: .*not_installed_anywhere"),
    ],
)
def test_a_task_that_would_fail_later_is_refused(task, settings, message, folder):
    with pytest.raises(ValueError, match=rf"eval\.tasks names '{task}', .*{message}"):
        rehearse(folder, task, **settings)


def test_one_special_token_is_enough_for_choices_and_one_at_the_end_for_texts(folder):
    rehearse(folder, "pairs", special={"bos_token": "<s>"})
    rehearse(folder, "answers", special={"eos_token": "</s>"})


def test_an_answer_that_cannot_be_scored_because_it_is_empty_is_only_warned_about(folder, caplog):
    with caplog.at_level(logging.WARNING):
        rehearse(folder, "of_an_answer")
    assert "of_an_answer: lm-eval cannot score empty answers (IndexError" in caplog.text


def test_the_limit_of_tokens_is_that_of_the_text_model_inside_a_model_with_vision(folder):
    lm = tiny("gemma3")
    assert lm.text_config.max_position_embeddings == 256
    with pytest.raises(ValueError, match=r"up to 300 tokens, .*may have 256 together"):
        rehearse_tasks(Eval(tasks=["answers"], include_path=str(folder), gen_kwargs={"max_gen_toks": 300}), lm)
