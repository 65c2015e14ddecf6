"""The same examples in every run; and counts what the program survived, for the line `make test-faults` ends with."""

from collections import Counter

import hypothesis
import pytest

hypothesis.settings.load_profile("ci")

KINDS = ("kills survived", "faults", "bad inputs", "numerics", "hostile files")
"""Arguments of the marker `counts`."""

survived: Counter[str] = Counter()
lost: list[str] = []
kills: Counter[str] = Counter()
"""By the stage that the program was killed in."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    marker = item.get_closest_marker("counts")
    if marker and report.failed:
        lost.append(report.nodeid)
    elif marker and report.passed and call.when == "call":
        (kind,) = marker.args
        killed = dict(report.user_properties).get("kills", [])
        kills.update(killed)
        survived[kind] += len(killed) if kind == KINDS[0] else 1
    return report


def pytest_collection_modifyitems(items):
    for item in items:
        marker = item.get_closest_marker("counts")
        assert marker is None or marker.args[0] in KINDS, f"{item.nodeid} counts {marker.args}"


def pytest_terminal_summary(terminalreporter):
    if survived or lost:
        stages = ", ".join(f"{stage} {count}" for stage, count in kills.items())
        amounts = [f"{survived[kind]} {kind}" + f" ({stages})" * (kind == KINDS[0] and bool(kills)) for kind in KINDS]
        terminalreporter.write_line(f"{', '.join(amounts)}: {f'{len(lost)} LOST' if lost else 'nothing lost'}")
