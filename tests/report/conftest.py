"""A finished run with its report."""

from pathlib import Path

import pytest

from evopress.report import write_report
from tests.run_folders import make_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "finished")
    write_report(folder)
    return folder
