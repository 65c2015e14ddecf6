"""Records a run of the demo: its table in `results.json`, and a picture of its report where Chromium is installed.

    make demo
    python -m experiments.demo.record outputs/smollm2/gptq-3bits/TIME

The table then has to be copied into the README of the project; a test compares them.
"""

import json
import logging
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from evopress.evaluation.candidates import Candidate
from evopress.evaluation.results_table import as_table
from tests.browser import CHROMIUM, browser

log = logging.getLogger("demo")

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1100, 1560
"""Pixels of the picture: the upper part of the page."""


def take_picture(page: Path) -> None:
    with browser() as driver:
        png = driver.open(page, WIDTH).png
    Image.open(BytesIO(png)).crop((0, 0, WIDTH, HEIGHT)).save(HERE / "report.png", optimize=True)


def main(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    candidates = {name: Candidate(**results[name]) for name in ("dense", "uniform", "searched", "tuned")}
    record = json.loads((HERE / "results.json").read_text())
    record |= {"date": run.name[:10], "seconds": results["seconds"], "table": as_table(candidates).splitlines()}
    if CHROMIUM:
        take_picture(run / "report.html")
        record["date_of_picture"] = record["date"]
    (HERE / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    log.info("%s", as_table(candidates))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(Path(sys.argv[1]))
