"""Watches a search: sends metrics of every answer to the tracker and adds up the cost."""

from evopress.runtime.tracking import Tracker
from evopress.search.driver import AnsweredQuestion


class SearchWatcher:
    """Call it with every answered question. `token_equivalents` is the cost of the search so far, replay included."""

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
