"""Progress is a bar in a terminal, and lines in the log otherwise."""

import logging
import sys

from evopress.runtime.progress import progress


def test_without_a_terminal_progress_goes_to_the_log_only(caplog, capsys):
    with caplog.at_level(logging.INFO):
        assert list(progress(range(3), desc="solve", unit="block")) == [0, 1, 2]
    assert [record.message.partition(",")[0] for record in caplog.records] == ["solve: 3/3"]  # none at the start
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar(monkeypatch, capsys, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level(logging.INFO):
        list(progress(range(3), desc="solve", unit="block"))
    assert "solve: 100%" in capsys.readouterr().err
    assert not caplog.records


def test_manual_updates_count_up_to_the_total(caplog):
    with caplog.at_level(logging.INFO), progress(total=5, desc="search", unit="question") as bar:
        bar.set_postfix_str("best 0.5", refresh=False)
        bar.update(5)
    assert "search: 5/5" in caplog.records[-1].message
    assert "best 0.5" in caplog.records[-1].message
