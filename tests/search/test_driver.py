"""Rules of the driver and its log: a killed search resumes, and a log of another search is refused."""

import pytest

from evopress.search.base import Search
from evopress.search.baselines.uniform import Uniform
from evopress.search.driver import SearchTask, run_search
from evopress.search.log import SearchLog
from evopress.space.units import Profile, Space
from tests.search.searches import evolution
from tests.spaces import BITS3, bit_space, linear_fitness


class InterruptedSearchError(Exception):
    pass


def drive(path, method: Search, space: Space, stop_after: int | None = None, seed: int = 0) -> Profile:
    fitness = linear_fitness([float(i * 7 % 11) for i in range(len(space))])

    def answer(number, question):
        if number == stop_after:
            raise InterruptedSearchError
        return [fitness(profile) + 0.1 * number for profile in question.profiles], 1.5

    log = SearchLog(path, {"seed": seed, "search": "x"})
    return run_search(SearchTask(method, space, BITS3, seed), answer, log=log)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 7, 39])
def test_a_killed_search_resumes_to_the_same_bytes(tmp_path, stop_after):
    space = bit_space([8] * 8)
    whole = drive(tmp_path / "whole.jsonl", evolution(), space)
    with pytest.raises(InterruptedSearchError):
        drive(tmp_path / "killed.jsonl", evolution(), space, stop_after=stop_after)
    with open(tmp_path / "killed.jsonl", "a") as file:
        file.write('{"ask": "batch", "tok')  # a line torn by the kill
    assert drive(tmp_path / "killed.jsonl", evolution(), space) == whole
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_log_of_other_settings_is_refused(tmp_path):
    space = bit_space([8] * 8)
    drive(tmp_path / "log.jsonl", evolution(), space, seed=1)
    with pytest.raises(ValueError, match="other settings \\(seed: 1 in the file, 2 now\\)"):
        drive(tmp_path / "log.jsonl", evolution(), space, seed=2)


def test_a_log_of_another_search_is_refused(tmp_path):
    space = bit_space([8] * 8)
    drive(tmp_path / "log.jsonl", evolution(), space)
    with pytest.raises(ValueError, match="records a question that this search does not ask"):
        drive(tmp_path / "log.jsonl", evolution(offspring=7), space)


def test_a_damaged_log_is_refused(tmp_path):
    space = bit_space([8] * 8)
    drive(tmp_path / "log.jsonl", evolution(), space)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    lines[3] = lines[3][:20]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="is damaged"):
        drive(tmp_path / "log.jsonl", evolution(), space)


def test_a_profile_that_breaks_the_budget_is_an_error(tmp_path):
    class Cheat(Uniform):
        def run(self, space, budget, rng):
            return space.uniform(0)
            yield

    with pytest.raises(RuntimeError, match="Cheat returned a profile that exceeds the budget"):
        drive(tmp_path / "log.jsonl", Cheat(), bit_space([8] * 3))
