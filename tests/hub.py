"""A stand-in for the data sets of the hub: their layout, and their numbers of rows and words."""

from collections.abc import Iterator, Mapping
from itertools import count, cycle, islice
from random import Random

from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(256)]
MODEL_SHAPE = {"vocab_size": len(WORDS) + 2, "bos_token_id": 256, "eos_token_id": 256}

WIKITEXT = {"train": 36_718, "validation": 3_760, "test": 4_358}
"""Rows of WikiText-2. A third are empty, and the others have 84 words: 244 000 words in the test split."""

C4_SHARD = "en/c4-validation.00000-of-00008.json.gz"
C4_ROWS = 45_576
C4_WORDS = 480
FINEWEB_WORDS = 1000


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the stand-in."""
    vocabulary = {word: number for number, word in enumerate([*WORDS, "<s>", "<unk>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


class SplittingTokenizer:
    """The tokens of `word_tokenizer`, ten times faster. Everything else is that of the real one."""

    def __init__(self):
        self.real = word_tokenizer()
        self.ids = self.real.get_vocab()

    def __getattr__(self, name):
        return getattr(self.real, name)

    def __call__(self, text, **options):
        return {"input_ids": [self.ids[word] for word in text.split()]}


def rows(seed: str, lengths: Iterator[int]) -> Iterator[dict[str, str]]:
    """Rows with so many words each, the same for the same seed."""
    rng = Random(seed)
    for length in lengths:
        yield {"text": " ".join([WORDS[number] for number in rng.randbytes(length)])}


def words(seed: str, length: int) -> str:
    """A text of so many words."""
    return next(rows(seed, iter([length])))["text"]


def load_dataset(
    path: str,
    name: str | None = None,
    *,
    split: str | None = None,
    streaming: bool = False,
    data_files: Mapping[str, str] | None = None,
) -> object:
    """What `datasets.load_dataset` returns. Refuses everything that the real hub does not have."""
    if path in TASKS:
        expected_name, row = TASKS[path]
        assert name in expected_name and split is None
        row_lists = {split: Dataset.from_list([row] * 3) for split in ("train", "validation", "test")}
        return DatasetDict(row_lists)
    assert streaming and split is not None
    if path == "Salesforce/wikitext":
        assert name == "wikitext-2-raw-v1" and data_files is None
        return rows(f"wikitext {split}", islice(cycle([0, 84, 84]), WIKITEXT[split]))
    if path == "allenai/c4":
        if data_files is not None:
            assert data_files == {split: C4_SHARD} and split == "validation" and name is None
            return rows("c4 validation", islice(cycle([C4_WORDS]), C4_ROWS))
        assert name == "en" and split == "train"
        return rows("c4 train", (C4_WORDS for _ in count()))
    assert (path, name, split) == ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train")
    return rows("fineweb", (FINEWEB_WORDS for _ in count()))


ARC = {"id": "1", "question": "w1 w2", "choices": {"text": ["w3", "w4"], "label": ["A", "B"]}, "answerKey": "A"}
HELLASWAG = {"activity_label": "w1", "ctx_a": "w2", "ctx_b": "w3", "endings": ["w4", "w5", "w6", "w7"], "label": "0"}
TASKS: Mapping[str, tuple[tuple[str | None, ...], Mapping[str, object]]] = {
    "allenai/ai2_arc": (("ARC-Easy", "ARC-Challenge"), ARC),
    "Rowan/hellaswag": ((None,), HELLASWAG),
    "baber/piqa": ((None,), {"goal": "w1 w2", "sol1": "w3", "sol2": "w4", "label": 0}),
    "allenai/winogrande": (
        ("winogrande_xl",),
        {"sentence": "w1 _ w2", "option1": "w3", "option2": "w4", "answer": "1"},
    ),
}
"""The data sets of the tasks of eval=paper: the names of their configurations, and a row."""
