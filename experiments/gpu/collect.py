"""Writes what `measure.sh` measured to `results.json` next to this file: seconds and peak memory of every stage.

python experiments/gpu/collect.py
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
RUNS = Path("outputs/studies/gpu")


def main() -> None:
    record = json.loads((HERE / "results.json").read_text())
    for path in sorted(RUNS.glob("*/*/results.json")):
        results = json.loads(path.read_text())
        record["runs"][f"{path.parent.parent.name} {path.parent.name}"] = {
            "rates": json.loads((path.parent.parent / "rates.json").read_text()),
            "seconds": results["seconds"],
            "peak_memory_gb": {stage: round(peak / 1e9, 1) for stage, peak in results["peak_memory_bytes"].items()},
            "token_equivalents": results["tokens"],
        }
    (HERE / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
