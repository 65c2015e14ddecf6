"""The settings of the final evaluation."""

from dataclasses import field

from pydantic import Field

from evopress.runtime.config_class import config_class


@config_class
class Eval:
    """What is measured at the end, besides KL and perplexity on the test split.

    Attributes:
        datasets: More texts for KL and perplexity; sources as in `data.source`.
        test_tokens: Of each of these texts, rounded up to whole windows. None takes all whole windows there are.
        tasks: Tasks of lm-evaluation-harness, or of the YAML files in `include_path`.
        include_path: A folder with YAML files of tasks. They may name Python functions and templates, which lm-eval
            runs, so use only files that you trust.
        num_fewshot: Examples in the prompt; None leaves it to the task.
        limit: Only this many examples of each task, the first ones.
        batch_size: Sequences that the model scores at once.
    """

    datasets: list[str] = field(default_factory=list)
    test_tokens: int | None = Field(default=None, gt=0)
    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, gt=0)
