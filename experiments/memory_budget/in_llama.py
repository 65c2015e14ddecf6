"""Runs a GGUF file in llama.cpp at a context, and prints what llama.cpp reports, in the environment .engines/llama.

    python in_llama.py FILE CONTEXT CACHE [TOKENS]      JSON on the last line

The context is filled with TOKENS tokens (default: all but 8). `reported` are the sizes of llama.cpp's buffers in its
log, in bytes, and `peak` is the largest memory of the process, with Python and the libraries.
"""

import json
import os
import re
import resource
import sys
import tempfile

import llama_cpp

TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0, "q4_0": llama_cpp.GGML_TYPE_Q4_0}
BUFFERS = {"weights": "model buffer size", "cache": "KV buffer size", "compute": "compute buffer size"}


def reported_bytes(log: str) -> dict[str, int]:
    """The sizes of the buffers, from lines such as "CPU KV buffer size =    11.25 MiB"."""
    found = {}
    for part, words in BUFFERS.items():
        sizes = re.findall(rf"{words} = +([\d.]+) MiB", log)
        found[part] = round(sum(map(float, sizes)) * 2**20)
    return found


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(path: str, context: int, cache: str, num_tokens: int) -> None:
    start = peak_bytes()
    with tempfile.TemporaryFile() as file:
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)  # llama.cpp writes its log to the standard error
        model = llama_cpp.Llama(
            path,
            n_ctx=context,
            type_k=TYPES[cache],
            type_v=TYPES[cache],
            flash_attn=True,
            n_threads=1,
            n_threads_batch=1,
            verbose=True,
        )
        os.dup2(terminal, 2)
        file.seek(0)
        log = file.read().decode()
    tokens = [1000 + position % 40000 for position in range(num_tokens)]
    model.eval(tokens)
    found = {"context": context, "kv": cache, "tokens": num_tokens, "reported": reported_bytes(log)}
    print(json.dumps({**found, "start": start, "peak": peak_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]) if sys.argv[4:] else int(sys.argv[2]) - 8)
