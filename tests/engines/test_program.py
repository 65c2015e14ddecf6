"""The program that measures a checkpoint in an engine, with stand-ins for the engines."""

import math
from pathlib import Path

import pytest

from evopress.engines import measure_checkpoint
from evopress.engines.known import ENGINES
from evopress.engines.program import EngineError, has_module, run_program
from tests.engines.stand_ins import VOCABULARY, stand_in


def measured(engine: str, folder: Path, windows: list[list[int]], *, code: str | None = None) -> dict:
    path = folder / "model"
    path.touch() if engine == "llama_cpp" else path.mkdir()
    request = {"path": str(path), "windows": windows, "threads": 1, "trust_remote_code": False}
    return run_program(stand_in(engine, folder, code=code), engine, request)


def counting(start: int, length: int) -> list[int]:
    return [(start + step) % VOCABULARY for step in range(length)]


@pytest.mark.parametrize("engine", ENGINES)
def test_perplexity_counts_every_token_but_the_first_of_each_window(engine, tmp_path):
    """The windows are longer than the chunks in which logits are normalised. Each has one unexpected token."""
    windows = [counting(0, 80), counting(290, 80)]
    for window in windows:
        window[70:] = counting(100, 10)
    total = math.log(1 + (VOCABULARY - 1) * math.exp(-20))
    expected = math.exp((2 * 20 + 158 * total) / 158)
    assert measured(engine, tmp_path, windows)["perplexity"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_version_memory_and_speeds_are_measured(engine, tmp_path):
    result = measured(engine, tmp_path, [counting(0, 64)])
    assert result["version"] == "9.9"
    assert 0 < result["resident_bytes_without_model"] <= 1.5 * result["resident_bytes"]
    assert result["prompt_tokens_per_s"] > 0


def test_speeds_are_those_of_reading_and_of_writing(monkeypatch):
    """Reading a token takes 0.1 ms and writing one 2 ms, except in the first round."""
    rounds = []

    def seconds(engine: object, tokens: list[int], num_tokens: int) -> float:
        rounds.append(tokens)
        return 1e-4 * len(tokens) + 2e-3 * (num_tokens - 1) + (9 if len(rounds) <= 3 else 0)

    monkeypatch.setattr(measure_checkpoint, "seconds", seconds)
    speeds = measure_checkpoint.measure_speeds(None, [counting(0, 64), counting(9, 64)])
    assert speeds == pytest.approx({"prompt_tokens_per_s": 1e4, "generated_tokens_per_s": 500})


def test_a_perplexity_too_large_for_a_number_is_unknown(monkeypatch):
    class Wrong:
        version = "9.9"

        def load(self, request: dict) -> None: ...
        def generate(self, tokens: list[int], num_tokens: int) -> None: ...
        def log_likelihoods(self, windows: list[list[int]]) -> list[float]:
            return [-1e4, -1e4]

    assert measure_checkpoint.measure(Wrong(), {"windows": [[1, 2, 3, 4]]})["perplexity"] is None


def test_the_error_of_a_failed_engine_has_the_end_of_its_output(tmp_path):
    with pytest.raises(EngineError, match="no kernel for this layer"):
        measured("llama_cpp", tmp_path, [counting(0, 8)], code="raise RuntimeError('no kernel for this layer')")


def test_a_module_is_found_without_importing_it(tmp_path):
    engine = ENGINES["llama_cpp"]
    assert has_module(stand_in("llama_cpp", tmp_path / "with", code="raise RuntimeError"), engine)
    assert not has_module(stand_in("llama_cpp", tmp_path / "without", code=""), engine)
