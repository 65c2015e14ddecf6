"""Watches a search: adds up the cost of the answers and sends metrics of the new ones to the tracker."""

from evopress.runtime.tracking import Tracker
from evopress.search.driver import AnsweredQuestion


class SearchWatcher:
    """Called with every answered question. `token_equivalents` is the cost so far, replayed answers included."""

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self.token_equivalents = 0.0

    def __call__(self, answered: AnsweredQuestion) -> None:
        self.token_equivalents += answered.token_equivalents
        if answered.replayed:
            return
        metrics = {"search/token_equivalents": self.token_equivalents}
        if answered.best is not None:
            metrics["search/best_fitness"] = answered.best
            metrics["search/minibatch_tokens"] = answered.question.num_tokens
        if answered.seconds > 0:
            metrics["search/tokens_per_s"] = answered.token_equivalents / answered.seconds
        self.tracker.log(metrics, step=answered.number)
