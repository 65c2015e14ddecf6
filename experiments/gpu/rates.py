"""Prints the rate of products in bfloat16 and the rate of copies on the GPU, as medians, in JSON.

python experiments/gpu/rates.py
"""

import json
from collections.abc import Callable

import torch

WARM_UP, REPEATS = 3, 20


def median_seconds(action: Callable[[], object]) -> float:
    """The median time of one call on the GPU, after a warm-up."""
    times = []
    for repeat in range(WARM_UP + REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        action()
        end.record()
        end.synchronize()
        if repeat >= WARM_UP:
            times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[REPEATS // 2]


def main() -> None:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(1 << 30, device="cuda", dtype=torch.float32).normal_()
    target = torch.empty_like(source)
    rates = {
        "device": torch.cuda.get_device_name(),
        "products_tflops": round(2 * 8192**3 / median_seconds(lambda: a @ b) / 1e12),
        "copies_tb_per_s": round(2 * source.nbytes / median_seconds(lambda: target.copy_(source)) / 1e12, 2),
    }
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
