"""Checks a checkpoint of safetensors files by the headers of the files."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from evopress.inspection.finding import Finding, read_object, with_counts

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of its file describes it. `weight_shape` is the unpacked shape of a packed weight."""

    shape: tuple[int, ...]
    dtype: str
    weight_shape: tuple[int, ...] | None = None


def inspect_checkpoint(folder: Path) -> Finding:
    """The architecture, size and quantisation of a checkpoint, and whether its files match its index."""
    finding = Finding("checkpoint", folder)
    config = read_object(folder / "config.json", finding)
    has_index = (folder / INDEX).is_file()
    file_of = _weight_map(folder, finding) if has_index else {}
    files = sorted(set(file_of.values())) if has_index else sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        finding.defects.append("there is no safetensors file")
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        stored = read_header(folder / name, finding)
        missing = {tensor for tensor, file in file_of.items() if file == name} - stored.keys()
        if missing:
            finding.defects.append(f"{name} lacks {len(missing)} tensors of the index, such as {min(missing)}")
        tensors |= stored
    finding.facts["architecture"] = ", ".join(map(str, config.get("architectures") or ["unknown"]))
    finding.facts |= size_facts(tensors)
    finding.facts["quantisation"] = _quantisation(config.get("quantization_config"))
    return finding


def inspect_safetensors(path: Path) -> Finding:
    """The size of a single safetensors file, and whether its header is intact."""
    finding = Finding("safetensors file", path)
    finding.facts = size_facts(read_header(path, finding))
    return finding


def _weight_map(folder: Path, finding: Finding) -> dict[str, str]:
    """The index, from tensors to files. Entries that point outside the folder are left out and reported as defects."""
    listed = read_object(folder / INDEX, finding).get("weight_map")
    if not isinstance(listed, dict):
        finding.defects.append(f"{INDEX} has no weight_map")
        return {}
    outside = [str(file) for file in listed.values() if not isinstance(file, str) or Path(file).name != file]
    finding.defects += [f"{INDEX} names {outside[0]}, which is not a file of this folder"] if outside else []
    return {str(tensor): file for tensor, file in listed.items() if str(file) not in outside}


def read_header(path: Path, finding: Finding) -> dict[str, StoredTensor]:
    """The tensors in the header of a safetensors file. A missing or damaged file is a defect and has none."""
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            weight_shapes = {
                name: tuple(map(int, file.get_tensor(shape)))
                for name in names
                if name.endswith(".weight_packed") and (shape := f"{name.removesuffix('_packed')}_shape") in names
            }
            return {
                name: StoredTensor(shapes[name], slices[name].get_dtype(), weight_shapes.get(name)) for name in names
            }
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        finding.defects.append(f"{path.name} is missing, cut off or damaged ({error})")
        return {}


def size_facts(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """The number of parameters and tensors. Scales, zero points and shapes are not counted as parameters."""
    suffixes = tuple(f".weight{suffix}" for suffix in ("_scale", "_global_scale", "_zero_point", "_shape"))
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(suffixes)}
    num_parameters = sum(_num_weights(name, tensor) for name, tensor in weights.items())
    return {
        "parameters": f"{num_parameters:,}",
        "tensors": f"{len(tensors)} ({with_counts(tensor.dtype for tensor in tensors.values())})",
    }


def _num_weights(name: str, tensor: StoredTensor) -> int:
    """The number of weights in a tensor. Packed bytes without a `weight_shape` hold two numbers of four bits each."""
    has_pairs = name.endswith(".weight_packed") and tensor.weight_shape is None
    return prod(tensor.weight_shape or tensor.shape) * (2 if has_pairs else 1)


def _quantisation(config: object) -> str:
    """compressed-tensors, mixed-precision: 3 layers at 4 bits, 2 layers at 8 bits (float-quantized)"""
    if not isinstance(config, dict):
        return "none"
    num_layers: Counter[str] = Counter()
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and isinstance(group.get("weights"), dict):
            targets = group.get("targets")
            layout = f" ({group.get('format')})" if group["weights"].get("type") == "float" else ""
            width = f"{group['weights'].get('num_bits')} bits{layout}"
            num_layers[width] += len(targets) if isinstance(targets, list) else 1
    method = ", ".join(str(config[key]) for key in ("quant_method", "format") if key in config)
    widths = ", ".join(f"{count} layers at {width}" for width, count in sorted(num_layers.items()))
    return f"{method}: {widths}".rstrip(": ")
