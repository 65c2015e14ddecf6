"""Quantises and measures GGUF files with llama.cpp; runs in the environment .engines/llama.

    python in_llama.py quantize DENSE.gguf TYPE FILE.gguf      llama.cpp's own mix of that name, such as Q4_K_M
    python in_llama.py quantize DENSE.gguf TYPE FILE.gguf IMPORTANCE.npz       the same with an importance matrix
    python in_llama.py compare TEXT WINDOWS DENSE.gguf FILE…   KL(dense ‖ file) per token and perplexity, as JSON

Windows are of 512 tokens from the start of the text, without BOS. The interval is twice the standard error of the
difference from the first FILE over windows. `kl_second_halves` is over positions 256 to 510, which
`llama-perplexity --kl-divergence` scores.
"""

import ctypes
import json
import sys
from math import exp
from pathlib import Path

import llama_cpp
import numpy as np

WINDOW = 512
SECOND_HALF = slice(WINDOW // 2, WINDOW - 1)


def quantize(dense: str, name: str, target: str, importance: str | None = None) -> None:
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    settings.nthread = 2
    kind = llama_cpp.llama_cpp.llama_model_imatrix_data
    arrays = {} if importance is None else {key: array.astype(np.float32) for key, array in np.load(importance).items()}
    entries = (kind * (len(arrays) + 1))()  # the last one, without a name, ends the list
    for entry, (key, array) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = key.encode(), array.size
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if arrays:
        settings.imatrix = ctypes.cast(entries, ctypes.POINTER(kind))
    if llama_cpp.llama_model_quantize(dense.encode(), target.encode(), settings):
        raise SystemExit(f"llama.cpp could not quantise {dense} to {name}")


def log_probabilities(model: llama_cpp.Llama, window: list[int]) -> np.ndarray:
    """float32 (time, vocabulary)."""
    model.reset()
    model.eval(window)
    logits = np.array(model.scores[: len(window)], dtype=np.float32)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def compare(text: str, num_windows: int, dense: str, files: list[str]) -> None:
    models = {path: open_model(path) for path in dict.fromkeys([dense, *files])}
    tokens = models[dense].tokenize(Path(text).read_bytes(), add_bos=False)
    windows = [tokens[start * WINDOW : (start + 1) * WINDOW] for start in range(num_windows)]
    kls: dict[str, list[float]] = {path: [] for path in models}
    halves: dict[str, list[float]] = {path: [] for path in models}
    losses: dict[str, list[float]] = {path: [] for path in models}
    for number, window in enumerate(windows):
        log_p = log_probabilities(models[dense], window)
        p = np.exp(log_p)
        for path, model in models.items():
            log_q = log_p if path == dense else log_probabilities(model, window)
            kl = (p * (log_p - log_q)).sum(-1)
            kls[path].append(float(kl.mean()))
            halves[path].append(float(kl[SECOND_HALF].mean()))
            losses[path].append(-float(log_q[np.arange(WINDOW - 1), window[1:]].mean()))
        print(f"window {number + 1} of {num_windows}", file=sys.stderr)
    results = {path: figures(path, kls[path], losses[path], kls[files[0]]) for path in models}
    for path, figures_of_file in results.items():
        figures_of_file["kl_second_halves"] = float(np.mean(halves[path]))
    print(json.dumps(results, indent=1))


def open_model(path: str) -> llama_cpp.Llama:
    return llama_cpp.Llama(path, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False)


def figures(path: str, kls: list[float], losses: list[float], reference: list[float]) -> dict[str, float]:
    difference = np.subtract(kls, reference)
    return {
        "bytes": Path(path).stat().st_size,
        "tokens": WINDOW * len(kls),
        "kl": float(np.mean(kls)),
        "perplexity": exp(float(np.mean(losses))),
        "kl_minus_first": float(difference.mean()),
        "interval": float(2 * difference.std(ddof=1) / len(kls) ** 0.5) if len(kls) > 1 else float("nan"),
    }


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:6])
    else:
        compare(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:])
