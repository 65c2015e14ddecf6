"""The scores of tasks, under lm-eval's names: metric and filter, as in "exact_match,strict-match".

A filter turns the model's answer into the text that is scored. A task without filters has the filter "none". The
standard error of "acc,none" is "acc_stderr,none". The first score of a task is its main score.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

Scores = dict[str, float]
"""The scores of one task by metric and filter."""


def stderr_key(key: str) -> str:
    """acc,none → acc_stderr,none"""
    metric, comma, name = key.partition(",")
    return f"{metric}_stderr{comma}{name}"


def metric_keys(scores: Iterable[str]) -> list[str]:
    """The keys of scores that are not standard errors of other scores."""
    keys = list(scores)
    errors = {stderr_key(key) for key in keys}
    return [key for key in keys if key not in errors]


def short_key(key: str) -> str:
    """A name for tables and trackers: acc,none → acc; exact_match,strict-match → exact_match/strict-match"""
    metric, _, name = key.partition(",")
    return metric if name in ("", "none") else f"{metric}/{name}"


def columns(results: Mapping[str, Mapping]) -> dict[str, Scores]:
    """The scores that tables show of lm-eval's results, by name of the task or group.

    If lm-eval computes a score for a group, as it does for mmlu, that score is shown instead of its members. Otherwise
    all members of the group are shown.
    """
    members: Mapping[str, Sequence[str]] = results.get("group_subtasks", {})
    inner = {member for names in members.values() for member in names}
    shown: dict[str, Scores] = {}
    for name in dict.fromkeys([*members, *results["results"]]):
        if name not in inner:
            shown |= _columns_of(name, results, members)
    return shown


def _columns_of(name: str, results: Mapping[str, Mapping], members: Mapping[str, Sequence[str]]) -> dict[str, Scores]:
    scores = scores_of(name, results)
    if scores or not members.get(name):
        return {name: scores}
    shown: dict[str, Scores] = {}
    for member in members[name]:
        shown |= _columns_of(member, results, members)
    return shown


def scores_of(name: str, results: Mapping[str, Mapping]) -> Scores:
    """The scores of a task or group in lm-eval's results, each followed by its standard error if it has one.

    Metrics are in the order of the task's YAML file. The scores of a metric are in the order of its filters.
    """
    entry = results["results"].get(name, {})
    numbers = {key: float(value) for key, value in entry.items() if "," in key and isinstance(value, Real)}
    metrics = list(results.get("higher_is_better", {}).get(name, {}))
    rank = {metric: index for index, metric in enumerate(metrics)}
    keys = sorted(metric_keys(numbers), key=lambda key: rank.get(key.partition(",")[0], len(rank)))
    return {key: numbers[key] for main in keys for key in (main, stderr_key(main)) if key in numbers}
