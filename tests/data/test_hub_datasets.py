"""The data sets of the hub are read and joined as papers do it. The hub is a stand-in with rows of the same layout."""

import json
from itertools import islice

import pytest

from evopress.data.hub_datasets import HUB_DATASETS, NUM_C4_DOCUMENTS, HubDataset, HubSplit, read_documents
from evopress.data.sources import text_source
from evopress.data.splits import load_splits, load_test_windows
from tests import hub
from tests.data.texts import settings

LARGE = {"window": 128, "calibration_tokens": 1280, "search_tokens": 1280, "validation_tokens": 1280}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", hub.load_dataset)


def text_of(name: str, split: str) -> str:
    (document,) = text_source(name).documents("text", split)
    return "".join(document.pieces(hub.word_tokenizer()))


def hub_rows(*arguments, **options) -> list[str]:
    return [row["text"] for row in hub.load_dataset(*arguments, streaming=True, **options)]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_all_rows_of_a_split_of_wikitext_are_joined_by_blank_lines(split):
    expected = "\n\n".join(hub_rows("Salesforce/wikitext", "wikitext-2-raw-v1", split=split))
    assert text_of("wikitext2", split) == expected


@pytest.mark.slow
def test_the_test_text_of_c4_is_the_first_1100_documents_of_the_first_shard_and_validation_text_what_follows():
    rows = hub_rows("allenai/c4", split="validation", data_files={"validation": hub.C4_SHARD})
    assert NUM_C4_DOCUMENTS == 1100
    assert text_of("c4", "test") == "\n\n".join(rows[:1100])
    assert text_of("c4", "validation") == "\n\n".join(rows[1100:])


@pytest.mark.slow
def test_the_whole_test_split_is_measured_in_windows(tmp_path):
    tokenizer = hub.word_tokenizer()
    data = settings("wikitext2", **LARGE, test_tokens=None)
    splits = load_splits(data, tokenizer, tmp_path)
    ids = tokenizer(text_of("wikitext2", "test"), add_special_tokens=False)["input_ids"]
    assert 240_000 < len(ids) < 250_000
    assert splits.test.flatten().tolist() == ids[: len(ids) // 128 * 128]
    c4 = load_test_windows("c4", data, None, tokenizer=tokenizer, cache=tmp_path)
    assert c4.numel() == 1100 * hub.C4_WORDS // 128 * 128


def test_more_tokens_than_a_test_split_has_are_refused_with_what_it_has_and_the_keys(tmp_path):
    with pytest.raises(
        ValueError, match=r"eval\.datasets: wikitext2 has about 24\d\d\d\d tokens.*eval\.test_tokens=null"
    ):
        load_test_windows("wikitext2", settings("pydoc"), 524_288, tokenizer=hub.word_tokenizer(), cache=tmp_path)


def test_a_row_that_came_before_is_left_out(monkeypatch):
    texts = ["a", "b", "", "a", "c", "b"]
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: [{"text": text} for text in texts])
    documents = list(read_documents(HUB_DATASETS["fineweb_edu"], HubSplit("train")))
    assert [document.content for document in documents] == [("a",), ("b",), ("c",)]
    assert documents[2].name == "row 5 of the train split of HuggingFaceFW/fineweb-edu"


def test_documents_of_the_hub_are_streamed_until_there_are_enough(tmp_path):
    splits = load_splits(settings("fineweb_edu", **LARGE, test_tokens=1280), hub.word_tokenizer(), tmp_path)
    assert splits.calibration.numel() == 1280
    (first, *_) = islice(text_source("fineweb_edu").documents("text", "train"), 1)
    expected = hub.word_tokenizer()(first.content[0], add_special_tokens=False)["input_ids"]
    assert splits.calibration.flatten().tolist()[:1000] == expected


def test_an_error_of_the_hub_is_quoted_whole(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("datasets.load_dataset", broken)
    with pytest.raises(
        ValueError, match=r"some/where cannot be read from the hub \(first line second line\): check the"
    ):
        list(read_documents(HubDataset("some/where", "x", {}), HubSplit("train")))


@pytest.mark.parametrize(
    ("name", "split", "convention"),
    [
        ("wikitext2", "test", 'all rows of the test split, joined by "\\n\\n", tokenised as one text'),
        ("c4", "test", f'the first 1100 rows of {hub.C4_SHARD}, joined by "\\n\\n", tokenised as one text'),
        ("fineweb_edu", "train", "documents, each tokenised by itself, joined by a blank line"),
    ],
)
def test_how_text_becomes_tokens_is_said_in_words(name, split, convention):
    assert text_source(name).convention(split) == convention
    assert json.loads(text_source(name).content_key())[0] == HUB_DATASETS[name].repository
