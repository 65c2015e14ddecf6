"""The settings of the final evaluation."""

from dataclasses import field
from typing import Annotated, Literal, TypeGuard

from pydantic import Field, field_validator

from evopress.runtime.config_class import UserPath, config_class

GenerationValue = bool | int | float | str | list[str]


@config_class
class Eval:
    """What is measured at the end, besides KL and perplexity on the test split.

    The settings of tasks have the same names and meanings as in lm-eval.

    Attributes:
        datasets: More texts for KL and perplexity, given like `data.source`.
        test_tokens: Tokens to use of each of these texts, rounded up to whole windows. None uses all whole windows.
        tasks: Tasks, groups and tags of lm-evaluation-harness, or of the YAML files in `include_path`.
        include_path: A folder with YAML files of tasks. They may name Python functions and templates, which lm-eval
            runs, so use only files that you trust.
        num_fewshot: Number of examples in the prompt, for all tasks or by task name. None uses each task's default.
        limit: Use only the first examples of each task: a number of examples, or a share below 1. None uses all.
        batch_size: Sequences that the model scores at once; "auto" finds how many fit into memory.
        apply_chat_template: Whether prompts are written as messages, with the chat template of the tokenizer.
        fewshot_as_multiturn: Whether each example becomes a question and an answer in the conversation. Otherwise all
            examples are in one message. Has an effect only with a chat template.
        system_instruction: Text before every prompt; with a chat template, the system message.
        gen_kwargs: Generation settings, such as `temperature`, that replace the task's own.
        prompts: Prompts whose greedy answers by the dense and the compressed model are shown. None is a built-in list
            of eight questions, and an empty list shows none.
        log_samples: Whether every prompt and answer is written to the run directory.
        engine: The inference engine that measures the exported, the uniform and the dense model: perplexity, memory
            and speed. None: no engine is run.
        engine_python: The Python of the environment in which the engine is installed. None is the Python that runs
            evopress.
        engine_tokens: Tokens of the test split that the engine reads, rounded up to whole windows. None reads all.
    """

    datasets: list[UserPath] = field(default_factory=list)
    test_tokens: int | None = Field(default=None, gt=0)
    tasks: list[str] = field(default_factory=list)
    include_path: UserPath | None = None
    num_fewshot: int | dict[str, int] | None = None
    limit: int | float | None = None
    batch_size: int | str = 8
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    gen_kwargs: dict[str, GenerationValue] | None = None
    log_samples: bool = False
    prompts: list[Annotated[str, Field(min_length=1)]] | None = None
    engine: Literal["llama_cpp", "vllm"] | None = None
    engine_python: UserPath | None = None
    engine_tokens: int | None = Field(default=8192, gt=0)

    @field_validator("num_fewshot", mode="before")
    @classmethod
    def _check_num_fewshot(cls, value: object) -> object:
        numbers = list(value.values()) if isinstance(value, dict) else [0 if value is None else value]
        if all(_is_integer(number) and number >= 0 for number in numbers):
            return value
        raise ValueError("give a number of examples, 0 or more, or a mapping such as {gsm8k: 5}")

    @field_validator("limit", mode="before")
    @classmethod
    def _check_limit(cls, value: object) -> object:
        is_share = isinstance(value, float) and 0 < value < 1
        if value is None or is_share or (_is_integer(value) and value > 0):
            return value
        raise ValueError("give a number of examples, at least 1, or a share of them between 0 and 1")

    @field_validator("batch_size", mode="before")
    @classmethod
    def _check_batch_size(cls, value: object) -> object:
        if value == "auto" or (_is_integer(value) and value > 0):
            return value
        raise ValueError("give a number of sequences, at least 1, or auto")

    def num_fewshot_of(self, task: str) -> int | None:
        """The number of examples in the prompt of one entry of `tasks`; None is the task's default."""
        return self.num_fewshot.get(task) if isinstance(self.num_fewshot, dict) else self.num_fewshot


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
