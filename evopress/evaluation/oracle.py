"""Answers the questions of a search with a loaded model: the fitness of profiles, and tables of measurements."""

from random import Random

from torch import Tensor

from evopress.data.windows import minibatch, warn_if_small
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.layer_errors import layer_errors
from evopress.evaluation.outliers import outlier_shares
from evopress.evaluation.residual_stream import stream_changes
from evopress.evaluation.switch_effects import parts_of, switch_effects, token_equivalents
from evopress.runtime import distributed
from evopress.search.base import Answer, Question, Table
from evopress.search.driver import minibatch_rng


class Oracle:
    """Answers the questions of a search. The minibatch depends only on the seed and the number of the question.

    Each answer comes with its cost in token equivalents: a window that runs through a third of the blocks costs a third
    of its tokens.
    """

    def __init__(self, context: EvaluationContext, seed: int):
        self.context = context
        self.seed = seed
        self.has_warned = False

    def __call__(self, number: int, question: Question) -> tuple[Answer, float]:
        rng = minibatch_rng(self.seed, number)
        pool = self.context.splits.search
        tokens = minibatch(pool, question.num_tokens, rng, excerpt=question.excerpt, bos=self.context.splits.bos)
        if not self.has_warned:
            self.has_warned = warn_if_small(tokens, question.num_tokens)
        if isinstance(question, Table):
            if question.kind == "switch_effects":
                return self._switch_effects(question, tokens, rng)
            return distributed.from_first(lambda: self._table(question, tokens))
        evaluator = self.context.evaluator
        answer = evaluator.evaluate(question.profiles, tokens, question.fitness)
        passes = evaluator.passes(question.profiles) + 1  # one more for the dense model
        return answer, passes * tokens.numel()

    def _table(self, question: Table, tokens: Tensor) -> tuple[Answer, float]:
        lm, space = self.context.lm, self.context.space
        if question.kind == "layer_error":
            assert self.context.database is not None, "the search asks for layer errors, but there is no database"
            return layer_errors(space, self.context.database), 0.0
        if question.kind == "outliers":
            return outlier_shares(lm, tokens, question.arguments), float(tokens.numel())
        return stream_changes(lm, space, tokens, question.kind, question.arguments), float(tokens.numel())

    def _switch_effects(self, question: Table, tokens: Tensor, rng: Random) -> tuple[Answer, float]:
        assert question.profile is not None
        (draws,) = (int(number) for number in question.arguments)
        evaluator = self.context.evaluator
        effects = switch_effects(
            evaluator.compressible,
            question.profile,
            parts=parts_of(tokens, evaluator.settings.batch_tokens),
            draws=draws,
            rng=rng,
            memory=evaluator.state_memory,
        )
        return effects.rows(), token_equivalents(self.context.space, tokens.numel(), draws)
