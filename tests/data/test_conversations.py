"""Chat messages become text by the chat template of the tokenizer."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from evopress.data.sources import text_source
from evopress.data.splits import load_splits
from tests.data.texts import ids, settings
from tests.tiny_models import tokenizer

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
CHATS = [
    [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": "A number." * 9}] for n in range(9)
]


def with_template(template: str = TEMPLATE):
    chatting = tokenizer()
    chatting.chat_template = template
    return chatting


def write_chats(path, chats):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"messages": chats}), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_messages_are_written_with_the_chat_template(suffix, tmp_path):
    path = write_chats(tmp_path / f"chats{suffix}", CHATS)
    splits = load_splits(settings(path, text_column="messages"), with_template(), tmp_path)
    text = "<user>What is 0?</user><assistant>" + "A number." * 9
    assert splits.calibration.flatten().tolist() == ids(text)[:60]


def test_another_chat_template_causes_new_tokenization(tmp_path):
    path = write_chats(tmp_path / "chats.jsonl", CHATS)
    chats = settings(path, text_column="messages")
    first = load_splits(chats, with_template(), tmp_path)
    other = load_splits(chats, with_template(TEMPLATE.replace("<", "[")), tmp_path)
    assert other.hashes["calibration"] != first.hashes["calibration"]


def test_messages_without_a_chat_template_are_refused_with_the_key(tmp_path):
    path = write_chats(tmp_path / "chats.jsonl", CHATS)
    with pytest.raises(
        ValueError, match=r"line 1 of .*no chat template: use a model with a chat template, or set data\.text_column"
    ):
        load_splits(settings(path, text_column="messages"), tokenizer(), tmp_path)


def test_what_a_chat_template_refuses_is_an_error_that_quotes_it(tmp_path):
    path = write_chats(tmp_path / "chats.jsonl", CHATS)
    strict = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match=r"refuses line 1 of .*\(roles must alternate\)"):
        load_splits(settings(path, text_column="messages"), strict, tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        [],
        ["text"],
        [{"from": "human", "value": "x"}],
        [{"role": "user", "content": None}],
        {"role": "user", "content": "x"},
    ],
    ids=["empty", "strings", "other keys", "no content", "no list"],
)
def test_a_value_that_is_neither_text_nor_messages_is_refused(value, tmp_path):
    path = write_chats(tmp_path / "chats.jsonl", [value])
    with pytest.raises(ValueError, match=r"line 1 of .* neither text nor a list of messages .*set data\.text_column"):
        list(text_source(str(path)).documents("messages", "train"))
