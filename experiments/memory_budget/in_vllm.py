"""Runs a model in vLLM with a cache of a number of bytes; runs in the environment .engines/vllm.

    python in_vllm.py FOLDER CONTEXT CACHE_BYTES      JSON on the last line

`tokens` is the number of tokens that filled the context. If vLLM refuses the cache as too small, `tokens` is null, and
`error` says why.
"""

import json
import os
import resource
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}

from vllm import LLM, SamplingParams


def main(folder: str, context: int, cache_bytes: int) -> None:
    found: dict[str, object] = {"context": context, "cache_bytes": cache_bytes, "tokens": None}
    try:
        model = LLM(
            folder,
            max_model_len=context,
            max_num_batched_tokens=context,
            max_num_seqs=1,
            enforce_eager=True,
            dtype="bfloat16",
            kv_cache_memory_bytes=cache_bytes,
        )
        prompt = {"prompt_token_ids": [1000 + position % 40000 for position in range(context - 4)]}
        (answer,) = model.generate([prompt], SamplingParams(max_tokens=4, ignore_eos=True))
        found["tokens"] = len(answer.prompt_token_ids) + len(answer.outputs[0].token_ids)
    except ValueError as error:
        found["error"] = str(error)
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
