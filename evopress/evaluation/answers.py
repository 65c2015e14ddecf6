"""Greedy answers of the dense and of the compressed model to a few prompts, for people to read."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from evopress.data.tokenization import tokenizer_identity
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.eval_settings import Eval
from evopress.models.language_model import LanguageModel
from evopress.space.apply import runnable
from evopress.space.units import Profile

log = logging.getLogger(__name__)

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "What is 17 plus 25?",
    "Translate into Spanish: The cat sleeps on the sofa.",
    "Name the four seasons.",
    "Write the first sentence of a story about a lighthouse.",
    "Write a Python function that adds two numbers.",
    "Anna is older than Ben, and Ben is older than Carl. Who is the youngest?",
)
"""The prompts of `eval.prompts=null`."""

NEW_TOKENS = 32
"""The most tokens of an answer."""

FIXED_DATE = "{% macro strftime_now(form) %}2025-01-01{% endmacro %}"
"""Stands before a chat template. Many templates write today's date, and answers must not change from day to day."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as people read it, and the tokens that the model reads."""

    text: str
    tokens: tuple[int, ...]


def prompts_of(settings: Eval, lm: LanguageModel) -> list[Prompt]:
    """The prompts of a run as tokens. A tokenizer with a chat template gets them as messages of a user.

    Of the built-in prompts, those that the model has no positions for are left out. Raises ValueError if one of
    `eval.prompts` has no tokens or too many.
    """
    is_built_in = settings.prompts is None
    texts = QUESTIONS if settings.prompts is None else settings.prompts
    prompts = [Prompt(text, _tokens(lm.tokenizer, text, is_question=is_built_in)) for text in texts]
    limit = lm.max_positions
    fitting = [prompt for prompt in prompts if limit is None or len(prompt.tokens) + NEW_TOKENS <= limit]
    if is_built_in:
        return fitting
    for prompt in prompts:
        if not prompt.tokens:
            raise ValueError(
                f"eval.prompts contains {prompt.text!r}, which has no tokens: write some text, or remove it"
            )
        if prompt not in fitting:
            raise ValueError(
                f"eval.prompts contains a prompt of {len(prompt.tokens)} tokens. With {NEW_TOKENS} tokens for the "
                f"answer, the model has embeddings for at most {limit}: shorten it"
            )
    return prompts


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, is_question: bool) -> tuple[int, ...]:
    conversation = _as_conversation(tokenizer, text)
    if conversation is not None:
        return tuple(tokenizer(conversation, add_special_tokens=False)["input_ids"])
    start = f"Question: {text}\nAnswer:" if is_question else text
    tokens = list(tokenizer(start)["input_ids"])
    end, own = tokenizer.eos_token_id, tokenizer(start, add_special_tokens=False)["input_ids"]
    is_end_added = tokens[-1:] == [end] and own[-1:] != [end] and len(tokens) > 1  # some tokenizers end every text
    return tuple(tokens[:-1] if is_end_added else tokens)


def _as_conversation(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """The text as a message, followed by the start of an answer. None if there is no template that accepts it."""
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": text}]
    try:
        template = FIXED_DATE + tokenizer.get_chat_template()
        conversation = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            date_string="01 Jan 2025",  # Llama's date
            enable_thinking=False,  # the answer comes at once
        )
        return str(conversation)
    except Exception as error:  # a template is a program that can raise errors of many types
        log.warning(
            "the chat template refuses a message of a user (%s: %s), so the prompts of eval.prompts are plain text",
            type(error).__name__,
            error,
        )
        return None


def answers_identity(prompts: Sequence[Prompt], lm: LanguageModel) -> dict[str, object]:
    """What the answers depend on, besides the models."""
    return {
        "prompts": [prompt.tokens for prompt in prompts],
        "new_tokens": NEW_TOKENS,
        "ends": end_tokens(lm),
        "tokenizer": tokenizer_identity(lm.tokenizer),
    }


def compare_answers(
    context: EvaluationContext, compressed: EvaluationContext, *, profile: Profile, prompts: Sequence[Prompt]
) -> list[dict[str, str]]:
    """The prompts with the answers of the dense model of `context` and of `profile` in `compressed`."""
    dense = _answers(context, None, prompts)
    answers = zip(prompts, dense, _answers(compressed, profile, prompts), strict=True)
    return [{"prompt": prompt.text, "dense": before, "compressed": after} for prompt, before, after in answers]


def _answers(context: EvaluationContext, profile: Profile | None, prompts: Sequence[Prompt]) -> list[str]:
    lm = context.lm
    with runnable(lm, context.space, context.evaluator.weights, profile) as model:
        generated = generate_greedily(model, [prompt.tokens for prompt in prompts], lm=lm)
    return [str(lm.tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in generated]


def generate_greedily(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, lm: LanguageModel, new_tokens: int = NEW_TOKENS
) -> Tensor:
    """The most likely next tokens, one after another, for all prompts in one batch: (prompts, at most new_tokens)."""
    length = max(map(len, prompts))
    padded = torch.tensor([[0] * (length - len(tokens)) + list(tokens) for tokens in prompts], device=lm.device)
    mask = torch.tensor([[0] * (length - len(tokens)) + [1] * len(tokens) for tokens in prompts], device=lm.device)
    ends = end_tokens(lm)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0
    )
    with torch.no_grad(), _generation_config(model, settings):
        tokens = model.generate(padded, attention_mask=mask, generation_config=settings)  # type: ignore[operator]
    return tokens[:, length:].cpu()


def end_tokens(lm: LanguageModel) -> list[int]:
    """The tokens that end an answer, according to the model and its tokenizer."""
    of_model = getattr(lm.model.generation_config, "eos_token_id", None)
    ends = [*(of_model if isinstance(of_model, list) else [of_model]), lm.tokenizer.eos_token_id]
    return list(dict.fromkeys(token for token in ends if token is not None))


@contextmanager
def _generation_config(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """While open, the model has these settings. Its own ones may have penalties that change greedy answers."""
    before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = before
