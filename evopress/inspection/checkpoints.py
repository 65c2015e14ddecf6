"""Whether a checkpoint of safetensors files is whole, read from their headers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from evopress.inspection.finding import Finding, counted, read_object

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of its file describes it; `means` is the shape of the weight that it packs, if it does."""

    shape: tuple[int, ...]
    dtype: str
    means: tuple[int, ...] | None = None


def inspect_checkpoint(folder: Path) -> Finding:
    """Headers of all safetensors files, the index against them, and how the weights are quantised."""
    finding = Finding("checkpoint", folder)
    config = read_object(folder / "config.json", finding)
    if (folder / INDEX).is_file():
        expected = _weight_map(folder, finding)
        files = sorted(set(expected.values()))
    else:
        expected, files = {}, sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        finding.damages.append("there is no safetensors file")
    tensors: dict[str, Stored] = {}
    for name in files:
        found = read_header(folder / name, finding)
        wrong = {tensor for tensor, file in expected.items() if file == name} - found.keys()
        finding.damages += [f"{name} lacks {len(wrong)} tensors of the index, such as {min(wrong)}"] if wrong else []
        tensors |= found
    finding.facts["architecture"] = ", ".join(map(str, config.get("architectures") or ["unknown"]))
    finding.facts |= amounts(tensors)
    finding.facts["quantisation"] = _quantisation(config.get("quantization_config"))
    return finding


def inspect_safetensors(path: Path) -> Finding:
    """A single file of tensors."""
    finding = Finding("safetensors file", path)
    finding.facts = amounts(read_header(path, finding))
    return finding


def _weight_map(folder: Path, finding: Finding) -> dict[str, str]:
    """Tensor → file, as the index says; only of files in the folder itself."""
    listed = read_object(folder / INDEX, finding).get("weight_map")
    if not isinstance(listed, dict):
        finding.damages.append(f"{INDEX} has no weight_map")
        return {}
    outside = [str(file) for file in listed.values() if not isinstance(file, str) or Path(file).name != file]
    finding.damages += [f"{INDEX} names {outside[0]}, which is not a file of this folder"] if outside else []
    return {str(tensor): file for tensor, file in listed.items() if str(file) not in outside}


def read_header(path: Path, finding: Finding) -> dict[str, Stored]:
    """What the header of a safetensors file lists; damages where it is missing, torn or cut."""
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            means = {
                name: tuple(map(int, file.get_tensor(shape)))
                for name in names
                if name.endswith(".weight_packed") and (shape := f"{name.removesuffix('_packed')}_shape") in names
            }
            return {name: Stored(shapes[name], slices[name].get_dtype(), means.get(name)) for name in names}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        finding.damages.append(f"{path.name} is missing, cut off or damaged ({error})")
        return {}


def amounts(tensors: Mapping[str, Stored]) -> dict[str, str]:
    extra = ("_scale", "_zero_point", "_shape")
    weights = [stored for name, stored in tensors.items() if not name.endswith(tuple(f".weight{end}" for end in extra))]
    parameters = sum(prod(stored.means or stored.shape) for stored in weights)
    return {
        "parameters": f"{parameters:,}",
        "tensors": f"{len(tensors)} ({counted(stored.dtype for stored in tensors.values())})",
    }


def _quantisation(config: object) -> str:
    if not isinstance(config, dict):
        return "none"
    widths: Counter[str] = Counter()
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and isinstance(group.get("weights"), dict):
            widths[f"{group['weights'].get('num_bits')} bits"] += (
                len(group["targets"]) if isinstance(group.get("targets"), list) else 1
            )
    named = ", ".join(str(config[key]) for key in ("quant_method", "format") if key in config)
    return f"{named}: {', '.join(f'{count} layers at {width}' for width, count in sorted(widths.items()))}".rstrip(": ")
