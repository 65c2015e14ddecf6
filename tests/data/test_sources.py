"""Every source gives its documents in a fixed order; text that cannot be read is a clear error."""

import hashlib
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from evopress.data.sources import TOPICS, text_source
from evopress.data.splits import load_splits
from tests.data.texts import settings
from tests.tiny_models import tokenizer


def test_the_text_that_comes_with_the_package_is_the_frozen_one():
    """Published figures are measured on it, so a changed byte would make them wrong."""
    content = TOPICS.read_bytes()
    assert hashlib.sha256(content).hexdigest() == "e81a4f3fc71fafbd0d092e58804c106cd251e4580938d87221636fe846f18501"


def texts_of(path: Path, column: str = "text") -> list[str]:
    documents = text_source(str(path)).documents(column, "train")
    return ["".join(document.pieces(tokenizer())) for document in documents]


def write_parquet(path: Path, column: str, rows: list[str | None]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({column: rows, "number": list(range(len(rows)))}), path)


def test_every_kind_of_file_gives_its_documents_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("whole\n\ntext")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n\n{"text": "séc\\u006fnd", "other": 3}\n', encoding="utf-8")
    write_parquet(tmp_path / "c.parquet", "text", ["third", None, "", "fourth"])
    (tmp_path / "ignored.md").write_text("ignored")
    documents = {name: texts_of(tmp_path / name) for name in ("a.jsonl", "c.parquet")}
    assert documents == {"a.jsonl": ["first", "sécond"], "c.parquet": ["third", "fourth"]}
    assert texts_of(tmp_path) == ["first", "sécond", "whole\n\ntext", "third", "fourth"]


def test_line_separators_inside_a_json_string_do_not_end_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one\u2028two\x85three"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert texts_of(path) == ["one\u2028two\x85three"]


def test_another_text_column_is_read(tmp_path):
    write_parquet(tmp_path / "a.parquet", "story", ["once", "upon"])
    (tmp_path / "b.jsonl").write_text('{"story": "a time"}')
    assert texts_of(tmp_path, "story") == ["once", "upon", "a time"]


@pytest.mark.counts("bad inputs")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"data\.source.*a\.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", b'{"text": "\xe9"}', r"data\.source.*not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"data\.source: line 2 of .*a\.jsonl is not JSON"),
        ("a.jsonl", b'{"story": "x", "n": 1}', r"no text in 'text' \(its keys are story, n\): set data\.text_column"),
        ("a.jsonl", b'{"text": 5}', r"line 1 .* 5 in 'text', which is neither text nor.*set data\.text_column"),
        ("a.jsonl", b'["text"]', r"line 1 .*no text in 'text' \(it is not an object\): set data\.text_column"),
        ("a.jsonl", b"[" * 100_000, r"data\.source: line 1 of .*a\.jsonl is not JSON"),
        ("a.parquet", b"junk", r"data\.source.*a\.parquet is not a parquet file"),
        ("a.parquet", b"", r"data\.source.*a\.parquet is not a parquet file"),
    ],
)
def test_the_error_for_unreadable_text_names_the_file_and_the_key(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_splits(settings(tmp_path / name), tokenizer(), tmp_path)


def test_the_error_for_a_missing_parquet_column_lists_the_existing_ones(tmp_path):
    write_parquet(tmp_path / "a.parquet", "story", ["once"])
    with pytest.raises(ValueError, match=r"no column 'text' \(its columns are story, number\): set data\.text_column"):
        load_splits(settings(tmp_path / "a.parquet"), tokenizer(), tmp_path)


def test_a_parquet_column_of_numbers_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", "story", ["once"])
    with pytest.raises(ValueError, match=r"data\.text_column"):
        load_splits(settings(tmp_path / "a.parquet", text_column="number"), tokenizer(), tmp_path)


def test_pydoc_needs_no_network_and_never_changes(tmp_path):
    first = load_splits(settings("pydoc"), tokenizer(), tmp_path / "a")
    assert load_splits(settings("pydoc"), tokenizer(), tmp_path / "b").hashes == first.hashes
    texts = set(json.loads(TOPICS.read_text()).values())
    assert len(list(text_source("pydoc").documents("text", "train"))) == len(texts)


def test_hidden_files_and_folders_are_not_read(tmp_path):
    for name in ("b.txt", ".ipynb_checkpoints/b-checkpoint.txt", ".draft.txt", "a/.git/c.txt", "a/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts_of(tmp_path) == ["a/a.txt", "b.txt"]
    assert texts_of(tmp_path / ".draft.txt") == [".draft.txt"]
    assert texts_of(tmp_path / "a" / ".git") == ["a/.git/c.txt"]


def test_a_folder_is_a_list_of_documents_whatever_its_name(tmp_path):
    folder = tmp_path / "x.txt"
    (folder / "y.txt").mkdir(parents=True)
    (folder / "z.txt").write_text("text")
    assert not text_source(str(folder)).is_one_text("train")
    assert text_source(str(folder / "z.txt")).is_one_text("train")
    assert texts_of(folder) == ["text"]


def test_the_content_of_a_source_is_its_bytes_and_the_types_of_its_files(tmp_path):
    (tmp_path / "a.txt").write_text('{"text": "x"}')
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    (tmp_path / "b.txt").write_text('{"text": "x"}')
    keys = [text_source(str(tmp_path / name)).content_key() for name in ("a.txt", "a.jsonl", "b.txt")]
    assert keys[0] == keys[2] != keys[1]


def test_a_text_is_read_in_pieces_with_characters_kept_whole(tmp_path, monkeypatch):
    text = "\ufeffzwölf €uro 😀\r\n" * 20
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
    monkeypatch.setattr("evopress.data.text_files.PIECE_BYTES", 5)
    assert texts_of(tmp_path / "a.txt") == [text.removeprefix("\ufeff")]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_the_place_of_a_byte_that_is_not_text_is_exact(name, tmp_path, monkeypatch):
    monkeypatch.setattr("evopress.data.text_files.PIECE_BYTES", 5)
    content = '{"text": "zwölf"}\n'.encode() * 3 + b"\xff"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"not UTF-8 text \(byte {len(content) - 1}\)"):
        texts_of(tmp_path / name)


def test_only_so_much_of_a_file_is_read_as_its_documents_are_asked_for(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "first"}\n\xff')
    document = next(text_source(str(tmp_path / "a.jsonl")).documents("text", "train"))
    assert document.content == ["first"]
