"""A real browser shows the pages."""

import pytest

from evopress.report import write_comparison
from tests.browser import CHROMIUM, browser
from tests.run_folders import make_run


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium in the path")
def test_an_offline_browser_shows_the_pages_completely_on_phone_and_desktop(finished_run, tmp_path):
    runs = [finished_run, make_run(tmp_path / "other", seed=1)]
    pages = [finished_run / "report.html", write_comparison(runs, tmp_path / "comparison.html")]
    with browser() as chromium:
        for page in pages:
            for width in (390, 1400):
                rendered = chromium.open(page, width)
                assert rendered.messages == []
                assert all(url.startswith(("file:", "data:")) for url in rendered.requests)
                assert len(rendered.images) >= 3 and all(rendered.images)
                assert rendered.width == width, "the page is wider than the window"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium in the path")
def test_the_browser_detects_missing_images_script_errors_and_overflow(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="missing.png"><p style="width: 500px">wide</p><script>nothing.here</script>')
    with browser() as chromium:
        rendered = chromium.open(page, 390)
    assert rendered.images == [0]
    assert rendered.width > 390
    assert any("missing.png" in message for message in rendered.messages)
    assert any("nothing is not defined" in message for message in rendered.messages)
