"""lm-eval runs tasks on a model in memory, offline; tasks that it cannot run are errors at the start."""

import logging
import os
from pathlib import Path

import pytest
import torch

from evopress.evaluation.eval_checks import check_chat_template, check_eval, check_tasks
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.lm_eval_tasks import TaskResult, run_task, task_manager
from tests.evaluation.task_files import QUESTIONS, write_tasks
from tests.tiny_models import tiny, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # a description that takes seconds
        folder = tmp_path_factory.mktemp("local") / "tasks"
        write_tasks(folder)
        yield folder


def run(folder: Path, task: str, **settings: object) -> TaskResult:
    lm = tiny("llama")
    chosen = Eval(tasks=[task], include_path=str(folder), **{"batch_size": 2, **settings})
    return run_task(lm.model, settings_tokenizer(chosen), task=task, settings=chosen, manager=task_manager(chosen))


def settings_tokenizer(settings: Eval):
    made = tokenizer()
    made.chat_template = TEMPLATE if settings.apply_chat_template else None
    return made


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


def test_a_local_task_runs_offline_and_agrees_with_plain_scoring(folder):
    before = os.getcwd()
    scores = run(folder, "pairs").columns["pairs"]
    assert os.getcwd() == before
    share = plain_accuracy(tiny("llama"), QUESTIONS)
    assert scores["acc,none"] == pytest.approx(share)
    assert scores["acc_stderr,none"] == pytest.approx((share * (1 - share) / (len(QUESTIONS) - 1)) ** 0.5)
    assert len(scores) == 2


def test_every_process_of_a_launcher_gets_results(folder, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run(folder, "pairs").columns == run(folder, "pairs", log_samples=True).columns
    assert os.environ["LOCAL_RANK"] == "1"


def test_filters_do_not_overwrite_each_other(folder):
    scores = run(folder, "answers", limit=2).columns["answers"]
    assert (scores["exact_match,strict-match"], scores["exact_match,flexible-extract"]) == (0.0, 1.0)


def test_a_task_of_perplexity_has_its_metrics_and_no_others(folder):
    assert list(run(folder, "rolling").columns["rolling"]) == ["word_perplexity,none", "bits_per_byte,none"]


def test_the_order_of_metrics_is_that_of_the_tasks_file(folder):
    assert next(iter(run(folder, "normed").columns["normed"])) == "acc_norm,none"


def test_a_group_has_one_column_and_a_tag_one_for_each_task(folder):
    group, tag = run(folder, "whole"), run(folder, "both")
    assert list(group.columns) == ["whole"]
    assert group.scores.keys() == {"whole", "pairs", "normed"}
    assert tag.columns.keys() == {"pairs", "normed"}
    assert group.columns["whole"]["acc,none"] == pytest.approx(tag.columns["pairs"]["acc,none"])


@pytest.mark.parametrize(("limit", "number"), [(4, 4), (0.5, 3), (None, 6)])
def test_a_limit_is_a_number_or_a_share(folder, limit, number):
    assert len(run(folder, "pairs", limit=limit, log_samples=True).samples["pairs"]) == number


def prompts(result: TaskResult, task: str = "pairs") -> list[str]:
    return [sample["arguments"][0][0] for sample in result.samples[task]]


def test_examples_are_added_as_num_fewshot_says(folder):
    number = {"num_fewshot": {"pairs": 2}}
    assert all(prompt.count(" is") == 3 for prompt in prompts(run(folder, "pairs", log_samples=True, **number)))
    assert all(prompt.count(" is") == 1 for prompt in prompts(run(folder, "normed", log_samples=True), "normed"))


@pytest.mark.parametrize(("multiturn", "num_messages"), [(True, 4), (False, 2)])
def test_prompts_are_messages_if_the_chat_template_is_applied(folder, multiturn, num_messages):
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": multiturn, "system_instruction": "Be right."}
    for prompt in prompts(run(folder, "pairs", log_samples=True, num_fewshot=1, **chat)):
        assert prompt.startswith("<system>Be right.<user>")
        assert prompt.count("<") - 1 == num_messages
        assert prompt.endswith("<assistant>")


def test_settings_of_generation_replace_those_of_the_task(folder):
    result = run(folder, "answers", limit=1, log_samples=True, gen_kwargs={"max_gen_toks": 5})
    assert result.samples["answers"][0]["arguments"][0][1]["max_gen_toks"] == 5


@pytest.mark.slow
def test_the_batch_size_can_be_found_automatically(folder):
    assert run(folder, "pairs", batch_size="auto").columns == run(folder, "pairs").columns


def test_the_padding_token_of_the_tokenizer_stays_as_it_was(folder):
    lm, chosen, made = tiny("llama"), Eval(tasks=["pairs"], include_path=str(folder)), tokenizer()
    made.pad_token = None
    run_task(lm.model, made, task="pairs", settings=chosen, manager=task_manager(chosen))
    assert made.pad_token is None


def test_a_task_that_is_added_to_the_folder_of_local_tasks_is_known(tmp_path):
    (tmp_path / "one.yaml").write_text("task: one\n")
    chosen = Eval(tasks=["one"], include_path=str(tmp_path))
    assert task_manager(chosen).all_tasks == ["one"]
    (tmp_path / "two.yaml").write_text("task: two\n")
    assert task_manager(chosen).all_tasks == ["one", "two"]


@pytest.mark.slow  # for an unknown name, lm-eval reads its thousands of tasks
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["pair"]}, r"'pair'.*pairs"),
        ({"tasks": ["pairs", "rolling", "pairs"]}, r"eval.tasks names 'pairs' twice: name it once"),
        ({"tasks": ["pairs"], "num_fewshot": {"piars": 5}}, r"eval.num_fewshot names 'piars', which is not in eval"),
    ],
)
def test_names_are_checked_before_anything_is_loaded(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        check_eval(Eval(include_path=str(folder), **settings))
    check_eval(Eval(include_path=str(folder), tasks=["pairs", "whole"], num_fewshot={"whole": 5}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["pairs", "whole"]}, r"eval.tasks names 'pairs' twice, in 'pairs' and in 'whole'"),
        ({"tasks": ["unimportable"]}, r"'unimportable', which lm-eval cannot load \(.*not_installed_anywhere"),
        ({"tasks": ["without_data"]}, r"'without_data', which lm-eval cannot load \(.*nothing.jsonl"),
        ({"tasks": ["unsafe"]}, r"'unsafe', which runs code that the model writes"),
        ({"tasks": ["pairs"], "gen_kwargs": {"temperature": 1}}, r"eval.gen_kwargs is set, but no task of eval.tasks"),
    ],
)
def test_tasks_that_cannot_be_run_are_errors_before_a_model_is_loaded(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        check_tasks(Eval(include_path=str(folder), **settings))


def test_a_task_that_refuses_examples_is_warned_about(folder, caplog):
    with caplog.at_level(logging.WARNING):
        check_tasks(Eval(include_path=str(folder), tasks=["bare", "answers"], num_fewshot=3))
    assert [record.args for record in caplog.records if "without examples" in record.message] == [("bare", 3)]


def test_a_missing_chat_template_is_an_error():
    chat = Eval(tasks=["pairs"], apply_chat_template=True)
    with pytest.raises(ValueError, match=r"eval.apply_chat_template is true, but the tokenizer of the model has no"):
        check_chat_template(chat, tokenizer())
    check_chat_template(Eval(tasks=["pairs"]), tokenizer())
    check_chat_template(chat, settings_tokenizer(chat))


def test_a_chat_template_that_refuses_the_system_instruction_is_an_error():
    refusing = tokenizer()
    refusing.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    chat = {"tasks": ["pairs"], "apply_chat_template": True}
    check_chat_template(Eval(**chat), refusing)
    with pytest.raises(ValueError, match=r"no system.*set eval.system_instruction to null"):
        check_chat_template(Eval(**chat, system_instruction="Be right."), refusing)


@pytest.mark.parametrize(
    "settings",
    [{"limit": 1.0}, {"limit": 2.5}, {"limit": True}, {"batch_size": "many"}, {"num_fewshot": {"pairs": 1.5}}],
)
def test_values_without_meaning_are_errors(settings):
    with pytest.raises(ValueError, match=rf"{next(iter(settings))}\n.*give "):
        Eval(**settings)


def test_a_missing_folder_of_tasks_is_an_error():
    with pytest.raises(ValueError, match=r"eval.include_path is 'nowhere', which is not a folder"):
        check_eval(Eval(include_path="nowhere"))


def test_without_tasks_the_harness_is_not_imported(monkeypatch):
    monkeypatch.setattr("evopress.evaluation.eval_checks.task_manager", None)
    monkeypatch.setattr("evopress.evaluation.eval_checks.load_tasks", None)
    check_eval(Eval(include_path=str(Path.cwd())))
    check_tasks(Eval())
