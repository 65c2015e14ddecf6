"""Runs tasks on a few examples without a model, so that errors that would stop them later show up at the start.

lm-eval writes the prompts and scores the answers just as it will with the model. Importing lm-eval takes seconds, so
import this module only if there are tasks.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.lm_eval_tasks import WITHOUT_RESULTS, evaluate_task, task_manager
from evopress.models.language_model import LanguageModel

log = logging.getLogger(__name__)

NUM_EXAMPLES = 4

MAX_LENGTH_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
"""Keys under which a model's configuration gives its maximum number of tokens, in the order that lm-eval uses."""


class RefusedTaskError(ValueError):
    """The model, or the library that runs it, would refuse what the task asks for."""


class Rehearsal(LM):
    """Stands in for a model. It gives empty answers, and checks the requests.

    `was_asked` becomes true with the first request. By then, lm-eval has written all prompts.
    """

    def __init__(self, lm: LanguageModel):
        super().__init__()
        self.tokenizer = lm.tokenizer
        self.max_num_tokens = next(
            (getattr(lm.text_config, name) for name in MAX_LENGTH_KEYS if hasattr(lm.text_config, name)), None
        )
        self.tiny_model = _tiny_model(lm.vocab_size)
        self.was_asked = False

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        assert isinstance(text, str)
        return text

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        self._check_first_token()
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        self._check_first_token()
        return [0.0] * len(requests)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        self.was_asked = True
        if self.tokenizer.eos_token_id is None:
            raise RefusedTaskError("the tokenizer has no token that ends a text (eos_token)")
        for arguments in {repr(request.args[1]): request.args[1] for request in requests}.values():
            self._check_generation(arguments)
        return [""] * len(requests)

    def _check_first_token(self) -> None:
        self.was_asked = True
        if self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None:
            raise RefusedTaskError("the tokenizer has no token that begins or ends a text (bos_token, eos_token)")

    def _check_generation(self, arguments: Mapping[str, object]) -> None:
        """Raises RefusedTaskError for too many tokens, and for settings that transformers refuses."""
        settings = dict(normalize_gen_kwargs(dict(arguments)))
        num_tokens, limit = int(str(settings.pop("max_gen_toks"))), self.max_num_tokens
        if limit is not None and num_tokens >= limit:
            raise RefusedTaskError(
                f"it generates up to {num_tokens} tokens, but prompt and answer may have {limit} together: set "
                "eval.gen_kwargs={max_gen_toks: NUMBER} with a smaller number"
            )
        unsampled = () if settings.get("do_sample") else ("temperature",)
        passed = {key: value for key, value in settings.items() if key not in ("until", "max_length", *unsampled)}
        try:
            self.tiny_model.generate(torch.zeros(1, 1, dtype=torch.int64), max_new_tokens=1, pad_token_id=0, **passed)  # type: ignore[operator]
        except Exception as error:  # wrong values lead to errors of many types
            raise RefusedTaskError(
                f"transformers refuses its generation settings ({type(error).__name__}: {error}): change "
                "eval.gen_kwargs"
            ) from error


def _tiny_model(vocab_size: int) -> PreTrainedModel:
    """A model with a single tiny block, which generates a token in no time."""
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1
        )
    )


def rehearse_tasks(settings: Eval, lm: LanguageModel) -> None:
    """Run every entry of `eval.tasks` on a few examples. `lm` may be on the `meta` device, because it does not run.

    Logs a warning if a task cannot score the empty answers of the rehearsal. Raises ValueError for a task whose prompts
    cannot be written, that lacks a package, or that the model would refuse.
    """
    manager = task_manager(settings)
    short = replace(settings, limit=NUM_EXAMPLES, log_samples=False)
    for task in settings.tasks:
        rehearsal = Rehearsal(lm)
        try:
            evaluate_task(rehearsal, task=task, settings=short, manager=manager, environment=WITHOUT_RESULTS)
        except RefusedTaskError as error:
            raise ValueError(f"eval.tasks names {task!r}, which cannot run: {error}") from error
        except ImportError as error:
            raise ValueError(f"eval.tasks names {task!r}, which needs a package: {error}") from error
        except Exception as error:  # a task runs its own code, which can raise any error
            if not rehearsal.was_asked:
                raise ValueError(
                    f"eval.tasks names {task!r}, and lm-eval cannot write its prompts ({type(error).__name__}: "
                    f"{error}): lower eval.num_fewshot, or check the other settings of eval"
                ) from error
            log.warning("%s: lm-eval cannot score empty answers (%s: %s)", task, type(error).__name__, error)
