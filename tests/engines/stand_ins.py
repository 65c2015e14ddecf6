"""Python environments with stand-ins for engines, whose model predicts that each token is followed by the next number.

The model is certain: it gives every other token a logit that is lower by 20.
"""

import sys
from pathlib import Path

VOCABULARY = 300

LLAMA_CPP = f"""
import numpy as np

def logits_after(token):
    logits = np.full({VOCABULARY}, -20.0, dtype=np.float32)
    logits[(token + 1) % {VOCABULARY}] = 0
    return logits

class Llama:
    def __init__(self, path, n_ctx, n_batch, n_threads, n_threads_batch, n_gpu_layers, logits_all, verbose):
        open(path, "rb").close()
        self.scores = np.zeros((n_ctx, {VOCABULARY}), dtype=np.float32) if logits_all else None
        self.num_tokens = 0
    def reset(self):
        self.num_tokens = 0
    def close(self):
        pass
    def eval(self, tokens):
        for token in tokens:
            if self.scores is not None:
                self.scores[self.num_tokens] = logits_after(token)
            self.num_tokens += 1
    def generate(self, tokens, temp):
        assert self.num_tokens == 0
        while True:
            yield 0
"""

VLLM = f"""
import math, os
from types import SimpleNamespace

__version__ = "9.9"

class SamplingParams:
    def __init__(self, **settings):
        self.__dict__.update(settings)

class LLM:
    def __init__(self, path, max_model_len, **settings):
        assert os.path.isdir(path) and os.environ["HF_HUB_OFFLINE"] == "1"
        self.max_model_len = max_model_len
    def generate(self, prompts, sampling, use_tqdm):
        (prompt,) = prompts
        tokens = prompt["prompt_token_ids"]
        assert len(tokens) + sampling.max_tokens <= self.max_model_len
        total = math.log(1 + {VOCABULARY - 1} * math.exp(-20))
        known = [None]
        for before, token in zip(tokens, tokens[1:]):
            logit = 0 if token == (before + 1) % {VOCABULARY} else -20
            known.append({{token: SimpleNamespace(logprob=logit - total)}})
        return [SimpleNamespace(prompt_logprobs=known)]
"""
PLATFORMS = "from types import SimpleNamespace\ncurrent_platform = SimpleNamespace(is_cpu=lambda: True)\n"
DISTRIBUTION = "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 9.9\n"

SOURCES = {
    "llama_cpp": {"llama_cpp.py": LLAMA_CPP, "llama_cpp_python-9.9.dist-info/METADATA": DISTRIBUTION},
    "vllm": {"vllm/__init__.py": VLLM, "vllm/platforms.py": PLATFORMS},
}


def stand_in(engine: str, folder: Path, *, code: str | None = None) -> str:
    """The Python of an environment that has the engine. `code` replaces its module; an empty one has no engine."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES[engine].items() if code != "" else ():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source if code is None or path.suffix != ".py" else code)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)
