"""Text files for the tests of data."""

import json

import pytest

from tests.data.texts import document, prose


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(prose(200))
    return path


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": document(index)}) + "\n" for index in range(12)))
    return path
