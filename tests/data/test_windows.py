"""Token windows: disjoint splits, exact counts, cached by content, and clear words when the text does not suffice."""

import json
from itertools import pairwise
from pathlib import Path
from random import Random

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evopress.data.settings import Data
from evopress.data.sources import text_source
from evopress.data.splits import SPLITS, Splits, dataset_name, load_splits, load_test_windows
from evopress.data.windows import minibatch, warn_if_small
from tests.tiny_models import tokenizer

TOKENS = {"calibration_tokens": 60, "search_tokens": 35, "validation_tokens": 10, "test_tokens": 20}
NUM_WINDOWS = {"calibration": 6, "search": 4, "validation": 1, "test": 2}
BOS = 256


class CountingTokenizer:
    """Notes what it is asked to tokenise."""

    def __init__(self):
        self.real = tokenizer()
        self.texts: list[str] = []

    @property
    def backend_tokenizer(self):
        return self.real.backend_tokenizer

    @property
    def bos_token_id(self):
        return self.real.bos_token_id

    def __call__(self, text, **options):
        self.texts.append(text)
        return self.real(text, **options)


def settings(source: Path | str, **changes) -> Data:
    return Data(**{"source": str(source), "window": 10, **TOKENS, **changes})


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def flat(splits: Splits, name: str) -> list[int]:
    return getattr(splits, name).flatten().tolist()


def prose(length: int, seed: int = 0) -> str:
    return "".join(Random(seed).choices("abcdefghij klmnop\n", k=length))


def document(index: int) -> str:
    """One letter 25 times, another for each document."""
    return 25 * chr(ord("A") + index)


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


def test_one_text_is_divided_by_position(text, tmp_path):
    splits = load_splits(settings(text), tokenizer(), tmp_path)
    everything = [token for name in SPLITS for token in flat(splits, name)]
    assert everything == ids(prose(200))[:130]
    for name, count in NUM_WINDOWS.items():
        windows = getattr(splits, name)
        assert windows.shape == (count, 10) and windows.dtype == torch.int64


def test_a_document_belongs_to_one_split_only(documents, tmp_path):
    splits = load_splits(settings(documents), tokenizer(), tmp_path)
    letters = [set(tokenizer().decode(flat(splits, name))) - {"\n"} for name in SPLITS]
    assert all(letters) and all(a.isdisjoint(b) for i, a in enumerate(letters) for b in letters[i + 1 :])
    assert [max(first) < min(second) for first, second in pairwise(letters)] == [True] * 3


def test_documents_are_joined_by_a_blank_line_in_their_order(documents, tmp_path):
    splits = load_splits(settings(documents), tokenizer(), tmp_path)
    assert tokenizer().decode(flat(splits, "calibration")) == "\n\n".join(document(i) for i in range(3))[:60]


def test_every_window_starts_with_bos_when_asked_for(text, tmp_path):
    splits = load_splits(settings(text, bos=True), tokenizer(), tmp_path)
    for name, count in NUM_WINDOWS.items():
        windows = getattr(splits, name)
        assert windows.shape == (count, 10)
        assert (windows[:, 0] == BOS).all() and not (windows[:, 1:] == BOS).any()
    everything = [token for name in SPLITS for token in getattr(splits, name)[:, 1:].flatten().tolist()]
    assert everything == ids(prose(200))[: 9 * 13]


def test_bos_without_such_a_token_is_refused(text, tmp_path):
    without = CountingTokenizer()
    without.real.bos_token = None
    with pytest.raises(ValueError, match=r"data\.bos is true.*data\.bos=false"):
        load_splits(settings(text, bos=True), without, tmp_path)


def test_a_test_source_gives_test_and_validation(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(prose(100, seed=1))
    splits = load_splits(settings(text, test_source=str(other)), tokenizer(), tmp_path)
    assert flat(splits, "calibration") + flat(splits, "search") == ids(prose(200))[:100]
    assert flat(splits, "test") + flat(splits, "validation") == ids(prose(100, seed=1))[:30]
    alone = load_test_windows(str(other), settings(text), tokenizer(), tmp_path)
    assert torch.equal(alone, splits.test)


def test_hashes_tell_windows_apart(text, tmp_path):
    first = load_splits(settings(text), tokenizer(), tmp_path / "a").hashes
    assert load_splits(settings(text), tokenizer(), tmp_path / "b").hashes == first
    assert len(set(first.values())) == len(SPLITS)
    text.write_text(prose(200).swapcase())
    assert not set(load_splits(settings(text), tokenizer(), tmp_path / "a").hashes.values()) & set(first.values())


def test_the_same_text_is_tokenised_once(text, tmp_path):
    counting = CountingTokenizer()
    first = load_splits(settings(text), counting, tmp_path)
    assert counting.texts == [prose(200)]
    again = load_splits(settings(text), counting, tmp_path)
    moved = tmp_path / "moved.txt"
    text.rename(moved)
    elsewhere = load_splits(settings(moved), counting, tmp_path)
    assert len(counting.texts) == 1
    for name in SPLITS:
        assert flat(first, name) == flat(again, name) == flat(elsewhere, name)


@pytest.mark.parametrize(
    "change",
    [{"window": 5}, {"bos": True}, {"search_tokens": 45}, {"text_column": "other"}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_tokenised_anew(change, text, tmp_path):
    counting = CountingTokenizer()
    load_splits(settings(text), counting, tmp_path)
    load_splits(settings(text, **change), counting, tmp_path)
    assert len(counting.texts) == 2


def test_changed_text_or_another_tokenizer_is_tokenised_anew(text, tmp_path):
    counting = CountingTokenizer()
    load_splits(settings(text), counting, tmp_path)
    text.write_text("Z" + prose(200)[1:])
    changed = load_splits(settings(text), counting, tmp_path)
    assert flat(changed, "calibration")[0] == ids("Z")[0] and len(counting.texts) == 2
    counting.real.add_tokens(["ab"])
    load_splits(settings(text), counting, tmp_path)
    assert len(counting.texts) == 3


@pytest.mark.parametrize("damage", [lambda content: content[:50], lambda content: b""], ids=["truncated", "empty"])
def test_a_damaged_cache_is_made_again(damage, text, tmp_path):
    first = load_splits(settings(text), tokenizer(), tmp_path)
    (cached,) = (tmp_path / "tokens").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    again = load_splits(settings(text), tokenizer(), tmp_path)
    assert again.hashes == first.hashes and cached.read_bytes() == whole


def test_too_little_text_says_how_much_there_is(text, tmp_path):
    text.write_text(prose(115))
    with pytest.raises(ValueError, match=r"about 115 tokens.*data\.test_tokens 20.*test is short of 15"):
        load_splits(settings(text), tokenizer(), tmp_path)
    assert not (tmp_path / "tokens").exists()


def test_exactly_enough_text_is_enough(text, tmp_path):
    text.write_text(prose(130))
    assert flat(load_splits(settings(text), tokenizer(), tmp_path), "test") == ids(prose(130))[110:]


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_an_empty_file_is_too_little_text(name, tmp_path):
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"about 0 tokens"):
        load_splits(settings(tmp_path / name), tokenizer(), tmp_path)


def write_parquet(path: Path, column: str, rows: list[str | None]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({column: rows, "number": list(range(len(rows)))}), path)


def test_every_kind_of_file_gives_its_documents_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("whole\n\ntext")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n\n{"text": "séc\\u006fnd", "other": 3}\n', encoding="utf-8")
    write_parquet(tmp_path / "c.parquet", "text", ["third", None, "", "fourth"])
    (tmp_path / "ignored.md").write_text("ignored")
    found = {
        name: list(text_source(str(tmp_path / name)).documents("text", "train")) for name in ("a.jsonl", "c.parquet")
    }
    assert found == {"a.jsonl": ["first", "sécond"], "c.parquet": ["third", "fourth"]}
    assert list(text_source(str(tmp_path)).documents("text", "train")) == [
        "first",
        "sécond",
        "whole\n\ntext",
        "third",
        "fourth",
    ]


def test_line_separators_inside_a_json_string_do_not_end_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one\u2028two\x85three"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(text_source(str(path)).documents("text", "train")) == ["one\u2028two\x85three"]


def test_another_text_column_is_read(tmp_path):
    write_parquet(tmp_path / "a.parquet", "story", ["once", "upon"])
    (tmp_path / "b.jsonl").write_text('{"story": "a time"}')
    assert list(text_source(str(tmp_path)).documents("story", "train")) == ["once", "upon", "a time"]


@pytest.mark.counts("bad inputs")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"data\.source.*a\.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", b'{"text": "\xe9"}', r"data\.source.*not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"data\.source: line 2 of .*a\.jsonl is not JSON"),
        ("a.jsonl", b'{"story": "x", "n": 1}', r"line 1 .*no text in 'text' but story, n: set data\.text_column"),
        ("a.jsonl", b'{"text": 5}', r"line 1 .*no text in 'text'.*set data\.text_column"),
        ("a.jsonl", b'["text"]', r"line 1 .*no text in 'text' but list: set data\.text_column"),
        ("a.jsonl", b"[" * 100_000, r"data\.source: line 1 of .*a\.jsonl is not JSON"),
        ("a.parquet", b"junk", r"data\.source.*a\.parquet is not a parquet file"),
        ("a.parquet", b"", r"data\.source.*a\.parquet is not a parquet file"),
    ],
)
def test_text_that_cannot_be_read_is_explained(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_splits(settings(tmp_path / name), tokenizer(), tmp_path)


def test_a_missing_parquet_column_is_named_with_those_there_are(tmp_path):
    write_parquet(tmp_path / "a.parquet", "story", ["once"])
    with pytest.raises(ValueError, match=r"no column 'text' but story, number: set data\.text_column"):
        load_splits(settings(tmp_path / "a.parquet"), tokenizer(), tmp_path)


def test_a_parquet_column_of_numbers_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", "story", ["once"])
    with pytest.raises(ValueError, match=r"data\.text_column"):
        load_splits(settings(tmp_path / "a.parquet", text_column="number"), tokenizer(), tmp_path)


@pytest.mark.parametrize("key", ["source", "test_source"])
def test_unknown_sources_are_refused_at_once(key, text, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.html").write_text("text")
    for wrong, reason in (("nowhere", "neither pydoc"), ("empty", "a folder without"), ("page.html", "end in .txt")):
        path = "nowhere" if wrong == "nowhere" else str(tmp_path / wrong)
        with pytest.raises(ValidationError, match=rf"data\.{key}.*{reason}"):
            settings(**{"source": text, key: path})


@pytest.mark.parametrize(
    "change", [{"window": 1}, {"search_tokens": 0}, {"test_tokens": -1}, {"windw": 3}], ids=lambda x: next(iter(x))
)
def test_settings_out_of_range_are_refused_by_name(change, text):
    with pytest.raises(ValidationError, match=next(iter(change))):
        settings(text, **change)


def test_pydoc_is_there_without_a_network_and_always_the_same(tmp_path):
    first = load_splits(settings("pydoc"), tokenizer(), tmp_path / "a")
    assert load_splits(settings("pydoc"), tokenizer(), tmp_path / "b").hashes == first.hashes
    assert len(list(text_source("pydoc").documents("text", "train"))) > 50


def test_numbers_of_tokens_are_rounded_up_to_whole_windows(text):
    data = settings(text)
    assert {name: data.num_windows(name) for name in SPLITS} == NUM_WINDOWS
    assert settings(text, window=7).num_windows("calibration") == 9


def test_a_source_is_called_by_its_name_or_that_of_its_file(text):
    assert [dataset_name("pydoc"), dataset_name("c4"), dataset_name(str(text))] == ["pydoc", "c4", "text"]


@given(
    st.integers(1, 12),
    st.integers(2, 9),
    st.integers(1, 150),
    st.integers(0, 2**32),
)
def test_a_minibatch_is_windows_without_repetition_and_the_same_for_the_same_seed(count, time, num_tokens, seed):
    windows = torch.arange(count * time).view(count, time)
    found = minibatch(windows, num_tokens, Random(seed))
    assert torch.equal(found, minibatch(windows, num_tokens, Random(seed)))
    assert len(set(found[:, 0].tolist())) == len(found)
    if num_tokens < time:
        assert found.shape == (1, num_tokens)
    else:
        assert found.shape == (min(count, -(-num_tokens // time)), time)
    assert all(torch.equal(row, windows[int(row[0]) // time][: len(row)]) for row in found)


def test_minibatches_of_other_seeds_differ_and_reach_every_window():
    windows = torch.arange(40).view(10, 4)
    drawn = [tuple(sorted(minibatch(windows, 12, Random(seed))[:, 0].tolist())) for seed in range(60)]
    assert len(set(drawn)) > 30 and {first for batch in drawn for first in batch} == set(range(0, 40, 4))


def test_a_pool_that_is_too_small_is_mentioned(caplog):
    windows = torch.zeros(2, 10, dtype=torch.int64)
    assert not warn_if_small(minibatch(windows, 20, Random(0)), 20)
    assert not warn_if_small(minibatch(windows, 8, Random(0), excerpt=4), 8)
    assert not caplog.records
    assert warn_if_small(minibatch(windows, 20, Random(0), excerpt=4), 20)
    assert "20 tokens" in caplog.text and "data.search_tokens gives only 2 windows, 4 tokens of each" in caplog.text


def test_an_excerpt_starts_with_the_bos_token_where_windows_do():
    windows = torch.arange(60).view(3, 20)
    starts = set()
    for seed in range(40):
        with_bos, without = (minibatch(windows, 15, Random(seed), excerpt=5, bos=bos) for bos in (True, False))
        assert torch.equal(with_bos[:, 1:], without[:, 1:])
        assert with_bos.shape == (3, 5) and set(with_bos[:, 0].tolist()) == {0, 20, 40}
        starts.add(int(without[0, 0]) % 20)
    assert len(starts) > 5
