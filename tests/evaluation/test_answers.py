"""Greedy answers of the dense and of the compressed model to a few prompts."""

import json
from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig

from evopress.compressors.drop import Drop
from evopress.evaluation import answers
from evopress.evaluation.answers import NEW_TOKENS, QUESTIONS, end_tokens, generate_greedily, prompts_of
from evopress.evaluation.eval_settings import Eval
from evopress.export.model_card import _plain
from evopress.pipeline import run_job
from evopress.report.read_run import read_run
from evopress.search.baselines.uniform import Uniform
from evopress.space.budget import Budget
from tests.jobs import small_job
from tests.tiny_models import tiny, tokenizer

TEMPLATE = "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}<assistant> "


def chatting(template: str):
    chat_tokenizer = tokenizer()
    chat_tokenizer.chat_template = template
    return replace(tiny("llama"), tokenizer=chat_tokenizer)


def texts(settings: Eval, lm) -> list[str]:
    """What the model reads."""
    return [lm.tokenizer.decode(prompt.tokens, skip_special_tokens=True) for prompt in prompts_of(settings, lm)]


def test_a_base_model_completes_questions_and_own_prompts_as_they_are():
    lm = tiny("llama")
    assert texts(Eval(), lm) == [f"Question: {question}\nAnswer:" for question in QUESTIONS]
    assert texts(Eval(prompts=["Once upon"]), lm) == ["Once upon"]
    assert prompts_of(Eval(prompts=[]), lm) == []


def test_a_prompt_has_no_end_even_if_the_tokenizer_ends_every_text():
    ending = tokenizer()
    end = (ending.eos_token, ending.eos_token_id)
    ending.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    lm = replace(tiny("llama"), tokenizer=ending)
    (added, own) = prompts_of(Eval(prompts=["Once upon", "Once</s>"]), lm)
    assert ending("Once upon")["input_ids"] == [*added.tokens, end[1]]
    assert own.tokens[-1] == end[1], "an end that the user wrote stays"


def test_a_chat_model_reads_messages_of_a_user():
    lm = chatting(TEMPLATE)
    assert texts(Eval(prompts=["Hello"]), lm) == ["<user> Hello\n<assistant> "]
    assert texts(Eval(), lm)[0] == f"<user> {QUESTIONS[0]}\n<assistant> "


def test_templates_write_the_same_day_every_day_and_start_no_reasoning():
    lm = chatting("{{ strftime_now('%Y') }}{% if enable_thinking is not false %}<think>{% endif %}" + TEMPLATE)
    assert texts(Eval(prompts=["Hello"]), lm) == ["2025-01-01<user> Hello\n<assistant> "]


def test_a_template_that_refuses_messages_leaves_plain_text(caplog):
    lm = chatting("{{ raise_exception('only systems may speak') }}")
    assert texts(Eval(prompts=["Hello"]), lm) == ["Hello"]
    assert "only systems may speak" in caplog.text


def test_prompts_are_checked_against_the_positions_of_the_model(monkeypatch):
    lm = tiny("llama")
    monkeypatch.setattr(type(lm), "max_positions", 12 + NEW_TOKENS)
    assert len(prompts_of(Eval(prompts=["a" * 5]), lm)) == 1
    with pytest.raises(ValueError, match=r"eval\.prompts contains a prompt of .* tokens.*at most 44: shorten it"):
        prompts_of(Eval(prompts=["a b c d e f g h i j k l m n o p"]), lm)
    assert prompts_of(Eval(), lm) == [], "the questions do not fit either"


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("dropped", [{}, {0: frozenset({"attention"}), 1: frozenset({"attention", "mlp"})}])
def test_answers_are_the_most_likely_tokens_whatever_else_is_in_the_batch(family, dropped):
    lm, prompts = tiny(family), [[5, 6, 7, 8], [9], [10, 11]]
    with lm.replaced({}, dropped) as model:
        generated = generate_greedily(model, prompts, lm=lm, new_tokens=4)
        for prompt, answer in zip(prompts, generated.tolist(), strict=True):
            tokens = list(prompt)
            for token in answer:
                with torch.no_grad():
                    expected = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax().item()
                assert token == expected
                tokens.append(token)
                if token in end_tokens(lm):
                    break


def test_penalties_and_temperatures_of_the_model_do_not_count(monkeypatch):
    lm = tiny("llama")
    plain = generate_greedily(lm.model, [[5, 6]], lm=lm)
    changed = GenerationConfig(repetition_penalty=50.0, temperature=0.1, do_sample=True)
    monkeypatch.setattr(lm.model, "generation_config", changed)  # the model belongs to all tests of this process
    assert torch.equal(generate_greedily(lm.model, [[5, 6]], lm=lm), plain)
    assert lm.model.generation_config is changed


def test_an_answer_stops_at_every_end_that_the_model_or_the_tokenizer_names(monkeypatch):
    lm = tiny("llama")
    first, *_ = generate_greedily(lm.model, [[5, 6]], lm=lm)[0].tolist()
    monkeypatch.setattr(lm.model, "generation_config", GenerationConfig(eos_token_id=[first]))
    assert generate_greedily(lm.model, [[5, 6]], lm=lm).tolist() == [[first]]


@pytest.mark.slow
def test_answers_are_in_the_results_and_the_report_and_are_not_given_again(model_folders, tmp_path, monkeypatch):
    settings = {"compress": Drop(), "budget": Budget(metric="drop", target=1 / 3), "search": Uniform()}
    job = small_job(tmp_path / "run", tmp_path, model_folders("llama"), **settings)
    run_job(replace(job, eval=Eval(prompts=["a <b>", "c"])))
    answered = json.loads((job.folder / "results.json").read_text())["answers"]
    assert [row["prompt"] for row in answered["prompts"]] == ["a <b>", "c"]
    assert answered["compressed"] == "searched"
    assert all(row["dense"] != row["compressed"] for row in answered["prompts"]), "a block is gone"
    assert read_run(job.folder).answers[0].dense == answered["prompts"][0]["dense"]
    assert "a &lt;b&gt;" in (job.folder / "report.html").read_text()

    monkeypatch.setattr("evopress.evaluate_stage.measure_candidates", None)  # scores do not depend on prompts
    run_job(replace(job, eval=Eval(prompts=["d"])))
    assert [row["prompt"] for row in json.loads((job.folder / "results.json").read_text())["answers"]["prompts"]] == [
        "d"
    ]
    row = {"prompt": "d", "dense": "an answer", "compressed": "that ends elsewhere"}
    with monkeypatch.context() as patch:
        for module in ("evaluation.answers", "identity"):
            patch.setattr(f"evopress.{module}.end_tokens", lambda lm: [])
        patch.setattr("evopress.evaluate_stage.compare_answers", lambda *_, **__: [row])
        run_job(replace(job, eval=Eval(prompts=["d"])))
        assert json.loads((job.folder / "results.json").read_text())["answers"]["prompts"] == [row]
    run_job(replace(job, eval=Eval(prompts=["d"])))
    monkeypatch.setattr(answers, "generate_greedily", None)
    run_job(replace(job, eval=Eval(prompts=["d"], log_samples=True)))  # the results are written again, with old answers
    run_job(replace(job, eval=Eval(prompts=[])))
    assert "answers" not in json.loads((job.folder / "results.json").read_text())


def test_a_model_card_shows_answers_as_they_are():
    assert _plain("a|b\n<i>*c*</i> [d](e)") == "a&#124;b &#60;i&#62;&#42;c&#42;&#60;&#47;i&#62; &#91;d&#93;(e)"
