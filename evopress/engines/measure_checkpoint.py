"""Measures a checkpoint in an inference engine: perplexity, memory and speed.

This is a program for the Python environment of the engine, which need not have evopress or its libraries::

    python measure_checkpoint.py llama_cpp < request.json

The request is JSON: the `path` of the checkpoint, token `windows` of one length, the number of `threads`, and
`trust_remote_code` for checkpoints with code of their own. The last line of the output is RESULT and the measurements
as JSON.
"""

import json
import math
import os
import statistics
import sys
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

REPEATS = 5
"""Measurements of each speed, after one that is not counted."""

NEW_TOKENS = 32
"""Tokens that are generated to measure the speed, unless the windows are too short."""

ROWS = 64
"""Positions whose logits are normalised at once."""

CPU_BLOCK = 128
"""Tokens in a block of vLLM's key-value cache on a CPU."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # the token after a window may have one position too many; it is not used
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that the memory is that of this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
"""Variables that are set unless the user has set them."""


class LlamaCpp:
    """llama.cpp through llama-cpp-python, with all layers on the GPU if it was built for one."""

    def __init__(self) -> None:
        import llama_cpp
        import numpy

        self.llama_cpp, self.numpy = llama_cpp, numpy
        self.version = version("llama_cpp_python")

    def load(self, request: dict[str, Any], *, logits_all: bool = False) -> None:
        length, threads = max_length(request), request["threads"]
        self.request = request
        self.model = self.llama_cpp.Llama(
            request["path"],
            n_ctx=length,
            n_batch=length,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=-1,
            logits_all=logits_all,
            verbose=False,
        )

    def generate(self, tokens: list[int], num_tokens: int) -> None:
        self.model.reset()  # otherwise the engine would not read again what it has read before
        for _ in islice(self.model.generate(tokens, temp=0.0), num_tokens):
            pass

    def log_likelihoods(self, windows: list[list[int]]) -> list[float]:
        """The log-likelihood of every token but the first of each window."""
        self.model.close()
        self.load(self.request, logits_all=True)
        found: list[float] = []
        for window in windows:
            self.model.reset()
            self.model.eval(window)
            for start in range(0, len(window) - 1, ROWS):
                found += self._log_likelihoods_of(window[start + 1 : start + 1 + ROWS], start)
        return found

    def _log_likelihoods_of(self, targets: list[int], start: int) -> list[float]:
        """The log-likelihoods of `targets`, the first of which follows position `start`."""
        np = self.numpy
        logits = np.asarray(self.model.scores[start : start + len(targets)], dtype=np.float64)
        logits = logits - logits.max(axis=1, keepdims=True)
        return list(logits[np.arange(len(targets)), targets] - np.log(np.exp(logits).sum(axis=1)))


class VLLM:
    """vLLM, all of it in this process."""

    def __init__(self) -> None:
        import vllm

        self.vllm = vllm
        self.version = str(vllm.__version__)

    def load(self, request: dict[str, Any]) -> None:
        length = max_length(request)
        self.model = self.vllm.LLM(
            request["path"],
            max_model_len=length,
            max_num_batched_tokens=length,
            max_num_seqs=1,
            enforce_eager=True,
            enable_prefix_caching=False,
            trust_remote_code=request["trust_remote_code"],
            **self._small_cache(length),
        )

    def _small_cache(self, length: int) -> dict[str, int]:
        """Settings with which the key-value cache holds one sequence, so that the memory is that of the model."""
        from vllm.platforms import current_platform

        return {"num_gpu_blocks_override": length // CPU_BLOCK + 2} if current_platform.is_cpu() else {}

    def generate(self, tokens: list[int], num_tokens: int) -> None:
        self._run(tokens, max_tokens=num_tokens, ignore_eos=True)

    def log_likelihoods(self, windows: list[list[int]]) -> list[float]:
        """The log-likelihood of every token but the first of each window."""
        found: list[float] = []
        for window in windows:
            known = self._run(window, max_tokens=1, prompt_logprobs=0).prompt_logprobs
            found += [known[position][token].logprob for position, token in enumerate(window) if position]
        return found

    def _run(self, tokens: list[int], **settings: Any) -> Any:
        sampling = self.vllm.SamplingParams(temperature=0.0, detokenize=False, **settings)
        return self.model.generate([{"prompt_token_ids": tokens}], sampling, use_tqdm=False)[0]


ENGINES: dict[str, Any] = {"llama_cpp": LlamaCpp, "vllm": VLLM}


def max_length(request: dict[str, Any]) -> int:
    """The longest sequence: a window, and the token that vLLM always generates after it."""
    return len(request["windows"][0]) + 1


def measure(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Load the checkpoint and measure it. The perplexity comes last, because it needs memory for logits."""
    memory_without_model = resident_bytes()
    engine.load(request)
    speeds = measure_speeds(engine, request["windows"])
    memory = resident_bytes()
    mean = -statistics.fmean(engine.log_likelihoods(request["windows"]))
    return {
        "version": engine.version,
        "perplexity": math.exp(mean) if mean < 700 else None,
        "resident_bytes": memory,
        "resident_bytes_without_model": memory_without_model,
        **speeds,
    }


def measure_speeds(engine: Any, windows: list[list[int]]) -> dict[str, float | None]:
    """Medians of the tokens per second: reading a window, and writing one token after another.

    The speed of writing is that of all tokens but the first, which takes the time of reading the prompt.
    """
    half = len(windows[0]) // 2
    new_tokens = max(2, min(NEW_TOKENS, half))
    reading, writing = [], []
    for repeat in range(1 + REPEATS):
        window = windows[repeat % len(windows)]
        reading.append(seconds(engine, window, 1))
        writing.append(seconds(engine, window[:half], new_tokens) - seconds(engine, window[:half], 1))
    read, written = statistics.median(reading[1:]), statistics.median(writing[1:])
    return {
        "prompt_tokens_per_s": len(windows[0]) / read,
        "generated_tokens_per_s": (new_tokens - 1) / written if written > 0 else None,
    }


def seconds(engine: Any, tokens: list[int], num_tokens: int) -> float:
    """The time to read `tokens` and generate `num_tokens`."""
    start = time.perf_counter()
    engine.generate(tokens, num_tokens)
    return time.perf_counter() - start


def resident_bytes() -> int | None:
    """The memory of this process now, on Linux; its peak on other Unix systems; None elsewhere."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    request = json.load(sys.stdin)
    for name, value in {**ENVIRONMENT, "OMP_NUM_THREADS": str(request["threads"])}.items():
        os.environ.setdefault(name, value)
    result = measure(ENGINES[sys.argv[1]](), request)
    sys.stdout.write(f"\nRESULT {json.dumps(result)}\n")


if __name__ == "__main__":
    main()
