"""Settings of the data that cannot work are refused, with the key to change."""

import pytest
from pydantic import ValidationError

from evopress.data.splits import SPLITS
from tests.data.texts import NUM_WINDOWS, settings


@pytest.mark.parametrize("key", ["source", "test_source"])
def test_unknown_sources_are_refused_before_anything_is_loaded(key, text, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.html").write_text("text")
    for wrong, reason in (("nowhere", "neither pydoc"), ("empty", "a folder without"), ("page.html", "end in .txt")):
        path = "nowhere" if wrong == "nowhere" else str(tmp_path / wrong)
        with pytest.raises(ValidationError, match=rf"data\.{key}.*{reason}"):
            settings(**{"source": text, key: path})


@pytest.mark.parametrize(
    "change", [{"window": 1}, {"search_tokens": 0}, {"test_tokens": -1}, {"windw": 3}], ids=lambda x: next(iter(x))
)
def test_the_error_for_a_setting_out_of_range_names_it(change, text):
    with pytest.raises(ValidationError, match=next(iter(change))):
        settings(text, **change)


def test_numbers_of_tokens_are_rounded_up_to_whole_windows(text):
    data = settings(text)
    assert {name: data.num_windows(name) for name in SPLITS} == NUM_WINDOWS
    assert settings(text, window=7).num_windows("calibration") == 9
