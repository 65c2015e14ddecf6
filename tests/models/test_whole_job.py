"""The whole job, from a folder to a verified checkpoint, on families with shared experts, scales, a vision tower or
blocks that differ.
"""

import json
from dataclasses import replace

import pytest

from evopress.export import Export
from evopress.pipeline import run_job
from evopress.space.settings import SpaceSettings
from tests.models.test_experts import SEARCH
from tests.planning.test_estimate import job
from tests.tiny_models import MIXED, SCALED, WITH_SHARED_EXPERTS, WITH_VISION, save_tiny


@pytest.mark.slow
@pytest.mark.parametrize("family", (*WITH_SHARED_EXPERTS, *SCALED, *WITH_VISION, *MIXED, "gpt_oss"))
def test_the_whole_job_runs(family, tmp_path):
    save_tiny(family, tmp_path / "model")
    settings = job(tmp_path, tmp_path / "model", search=SEARCH, export=Export(formats=["hf"]))
    run_job(replace(settings, space=SpaceSettings(tie="expert")))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["exports"]["hf"] and results["searched"]["kl"]
