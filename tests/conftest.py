"""Settings and fixtures for all tests, the reasons for skipped ones, and the count of survived faults."""

import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.load_profile("ci")  # the same examples in every run

KINDS = (
    "kills survived",
    "faults",
    "bad inputs",
    "hostile files",
    "odd numbers",
    "identity keys walked",
    "late errors found early",
)
"""Arguments of the marker `counts`."""

survived: Counter[str] = Counter()
failed: list[str] = []
kills: Counter[str] = Counter()
"""The number of kills, by the stage in which they happened."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Attach what a test counts to its report, which is sent to the process that writes the summary."""
    report = yield
    marker = item.get_closest_marker("counts")
    if marker:
        report.user_properties.append(("counts", marker.args[0]))
    return report


def pytest_runtest_logreport(report):
    properties = dict(report.user_properties)
    if "counts" not in properties:
        return
    if report.failed:
        failed.append(report.nodeid)
    elif report.passed and report.when == "call":
        killed_in = properties.get("kills", [])
        kills.update(killed_in)
        survived[properties["counts"]] += len(killed_in) if properties["counts"] == KINDS[0] else 1


def pytest_collection_modifyitems(items):
    for item in items:
        marker = item.get_closest_marker("counts")
        assert marker is None or marker.args[0] in KINDS, f"{item.nodeid} counts {marker.args}"


def pytest_collection_finish():
    """Let the garbage collector run less often, and never over what was imported. The tests then take 5 % less time."""
    gc.freeze()
    gc.set_threshold(50_000)


def pytest_terminal_summary(terminalreporter):
    """What was skipped and why, a line for each reason; and the count of survived faults."""
    skipped = Counter(reason_of(report) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in skipped.items():
        terminalreporter.write_line(f"skipped {count}: {reason}")
    if survived or failed:
        stages = ", ".join(f"{stage} {count}" for stage, count in kills.items())
        amounts = [f"{survived[kind]} {kind}" + f" ({stages})" * (kind == KINDS[0] and bool(kills)) for kind in KINDS]
        terminalreporter.write_line(f"{', '.join(amounts)}: {f'{len(failed)} LOST' if failed else 'nothing lost'}")


def reason_of(report) -> str:
    """Why a test was skipped, from the report that pytest makes: file, line and reason."""
    return report.longrepr[2].removeprefix("Skipped: ")


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory) -> Callable[[str], Path]:
    """A function that saves a tiny model of a family, once, and returns its folder."""
    from tests.tiny_models import save_tiny  # imports transformers, for seconds, which many tests do without

    folders: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            save_tiny(family, folders[family])
        return folders[family]

    return folder_of
