"""Compares the K types of evopress with those of ggml's own quantisers; writes results.json, and prints the table.

    python experiments/k_types/measure.py MODEL TEXT HELD_OUT      # after: make engines

MODEL is a folder. The first windows of TEXT give the powers of the inputs and the Hessians, those of HELD_OUT the
Hessians with which the outputs are compared. ggml gets the same powers as its importance matrix.
"""

import ctypes
import json
import logging
import sys
from datetime import date
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.nn import Module

from evopress.compressors.base import LayerGroup
from evopress.compressors.gguf import GGUF
from evopress.compressors.hessian import RunningHessian
from evopress.compressors.k_search import search_superblocks
from evopress.models.language_model import LanguageModel
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.weights.k_types import K_TYPES, SUPERBLOCK, KTypeName
from evopress.weights.kquants import KWeight

log = logging.getLogger("k_types")

HERE = Path(__file__).parent
LAYERS = ("layers.5.mlp.down_proj", "layers.22.mlp.down_proj", "layers.10.self_attn.q_proj", "layers.15.mlp.up_proj")
NAMES: tuple[KTypeName, ...] = get_args(KTypeName)
NUMBERS = {"Q6_K": 14, "Q5_K": 13, "Q4_K": 12, "Q3_K": 11, "Q2_K": 10}
Figures = dict[str, float]
NUM_ROWS, WINDOW, NUM_WINDOWS = 192, 512, 32


def hessians(lm: LanguageModel, text: Path) -> dict[str, Tensor]:
    """The Hessian of every layer, from the first windows of a text."""
    tokens = torch.tensor(lm.tokenizer(text.read_text()[: 8 * WINDOW * NUM_WINDOWS])["input_ids"])
    sums: dict[str, RunningHessian] = {}
    handles = []
    for layer in LAYERS:
        sums[layer] = running = RunningHessian(weight_of(lm, layer).shape[1])

        def update(module: Module, inputs: tuple[Tensor], running: RunningHessian = running) -> None:
            running.update(inputs[0].flatten(0, 1))

        handles.append(lm.model.get_submodule(f"model.{layer}").register_forward_pre_hook(update))
    with torch.no_grad():
        for window in tokens[: WINDOW * NUM_WINDOWS].view(-1, WINDOW).split(4):
            lm.model.base_model(input_ids=window, use_cache=False)
    for handle in handles:
        handle.remove()
    return {layer: running.result() for layer, running in sums.items()}


def weight_of(lm: LanguageModel, layer: str) -> Tensor:
    return lm.model.get_parameter(f"model.{layer}.weight").detach().float()


def searched(W: Tensor, power: Tensor, name: str) -> Tensor:
    grid = search_superblocks(W.t().contiguous(), power, type_name=name)
    return grid.weight(grid.encode(W.t())).dense()


def by_gptq(W: Tensor, H: Tensor, name: KTypeName) -> Tensor:
    return GGUF(types=(name,)).compress(LayerGroup(("layer",), (W,), H)).levels[0][0].dense()


def by_ggml(W: Tensor, power: Tensor, name: str, library: ctypes.CDLL) -> Tensor:
    rows, cols = W.shape
    data = torch.empty(rows, cols // SUPERBLOCK * K_TYPES[name].num_bytes, dtype=torch.uint8)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (W, data, power)]
    sizes = [ctypes.c_int64(size) for size in (0, rows, cols)]
    library.ggml_quantize_chunk(NUMBERS[name], *pointers[:2], *sizes, pointers[2])
    return KWeight(data, name).dense()


def weighted_error(dense: Tensor, W: Tensor, power: Tensor) -> float:
    return float(((dense - W).double().square() * power).sum() / (W.double().square() * power).sum())


def output_error(dense: Tensor, W: Tensor, H: Tensor) -> float:
    change = (dense - W).double()
    return float((change @ H.double() * change).sum() / (W.double() @ H.double() * W.double()).sum())


def compare(W: Tensor, H: Tensor, held_out: Tensor, library: ctypes.CDLL) -> dict[str, Figures]:
    power = H.diagonal().contiguous()
    figures: dict[str, Figures] = {}
    for name in NAMES:
        ours, theirs = searched(W, power, name), by_ggml(W, power, name, library)
        figures[name] = {
            "weighted_error": weighted_error(ours, W, power),
            "weighted_error_of_ggml": weighted_error(theirs, W, power),
            "held_out_error": output_error(ours, W, held_out),
            "held_out_error_of_gptq": output_error(by_gptq(W, H, name), W, held_out),
            "held_out_error_of_ggml": output_error(theirs, W, held_out),
        }
    return figures


def table(results: dict[str, dict[str, Figures]]) -> str:
    """Markdown: errors as shares of those of ggml."""
    lines = [f"| weights | {' | '.join(NAMES)} |", f"|---|{'---|' * len(NAMES)}"]
    for weights, figures in results.items():
        cells = []
        for name in NAMES:
            of_type = figures[name]
            weighted = of_type["weighted_error"] / of_type["weighted_error_of_ggml"]
            outputs = of_type["held_out_error_of_gptq"] / of_type["held_out_error_of_ggml"]
            cells.append(f"{weighted:.2f} ({outputs:.2f})")
        lines.append(f"| {weights} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(folder: str, text: Path, held_out: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (library, *_) = sorted(Path(".engines/llama").glob("lib/python3.*/site-packages/llama_cpp/lib/libggml-base.*"))
    lm = load_model(ModelSource(name="model", path=folder, dtype="float32", device="cpu"), Path("outputs/cache"))
    first, second = hessians(lm, text), hessians(lm, held_out)
    results = {}
    for layer in LAYERS:
        weight = weight_of(lm, layer)
        cols = weight.shape[1] // SUPERBLOCK * SUPERBLOCK
        H, other = (part[layer][:cols, :cols].contiguous() for part in (first, second))
        results[layer] = compare(weight[:NUM_ROWS, :cols].contiguous(), H, other, ctypes.CDLL(str(library)))
    record = {"date": str(date.today()), "llama_cpp_python": "0.3.36", "results": results}
    (HERE / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    log.info("%s", table(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
