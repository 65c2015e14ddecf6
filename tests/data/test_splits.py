"""The four splits are disjoint, have exact sizes and are cached by content; too little text is a clear error."""

from itertools import pairwise

import pytest
import torch

from evopress.data.splits import SPLITS, Splits, check_test_windows, extracts_of, load_splits, load_test_windows
from tests.data.texts import BOS, NUM_WINDOWS, document, ids, prose, settings
from tests.tiny_models import tokenizer


class CountingTokenizer:
    """Records the texts that it tokenises."""

    def __init__(self):
        self.real = tokenizer()
        self.texts: list[str] = []

    @property
    def backend_tokenizer(self):
        return self.real.backend_tokenizer

    @property
    def bos_token_id(self):
        return self.real.bos_token_id

    @property
    def chat_template(self):
        return self.real.chat_template

    def __call__(self, text, **options):
        self.texts.append(text)
        return self.real(text, **options)


def flat(splits: Splits, name: str) -> list[int]:
    return getattr(splits, name).flatten().tolist()


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


def test_bos_is_refused_for_a_tokenizer_without_a_bos_token(text, tmp_path):
    without = CountingTokenizer()
    without.real.bos_token = None
    with pytest.raises(ValueError, match=r"data\.bos is true.*data\.bos=false"):
        load_splits(settings(text, bos=True), without, tmp_path)


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "other.txt"
    path.write_text(prose(100, seed=1))
    return path


def test_a_test_source_gives_test_text_and_nothing_else(text, other, tmp_path):
    splits = load_splits(settings(text, test_source=str(other)), tokenizer(), tmp_path)
    assert [token for name in SPLITS[:3] for token in flat(splits, name)] == ids(prose(200))[:110]
    assert flat(splits, "test") == ids(prose(100, seed=1))[:20]
    alone = load_test_windows(str(other), settings(text), 20, tokenizer=tokenizer(), cache=tmp_path)
    assert torch.equal(alone, splits.test)


def test_a_validation_source_gives_validation_text_and_nothing_else(text, other, tmp_path):
    splits = load_splits(settings(text, validation_source=str(other)), tokenizer(), tmp_path)
    assert [token for name in ("calibration", "search", "test") for token in flat(splits, name)] == ids(prose(200))[
        :120
    ]
    assert flat(splits, "validation") == ids(prose(100, seed=1))[:10]


def test_one_source_for_test_and_validation_gives_its_first_tokens_to_test(text, other, tmp_path):
    both = settings(text, test_source=str(other), validation_source=str(other))
    splits = load_splits(both, tokenizer(), tmp_path)
    assert flat(splits, "test") + flat(splits, "validation") == ids(prose(100, seed=1))[:30]


def test_the_whole_test_text_is_all_its_whole_windows(text, other, tmp_path):
    splits = load_splits(settings(text, test_source=str(other), test_tokens=None), tokenizer(), tmp_path)
    assert flat(splits, "test") == ids(prose(100, seed=1))[:100]
    rest = load_splits(settings(text, test_tokens=None), tokenizer(), tmp_path)
    assert flat(rest, "test") == ids(prose(200))[110:200]
    other.write_text(prose(47, seed=1))
    whole = load_test_windows(str(other), settings(text), None, tokenizer=tokenizer(), cache=tmp_path)
    assert whole.flatten().tolist() == ids(prose(47, seed=1))[:40]


def test_a_calibration_seed_changes_the_calibration_windows_and_no_others(text, tmp_path):
    text.write_text(prose(500))
    first = load_splits(settings(text), tokenizer(), tmp_path)
    seeded = [load_splits(settings(text, calibration_seed=seed), tokenizer(), tmp_path) for seed in (0, 1, 0)]
    for splits in seeded:
        assert splits.calibration.shape == first.calibration.shape
        assert set(splits.hashes) == set(SPLITS)
        assert all(splits.hashes[name] == first.hashes[name] for name in SPLITS[1:])
    hashes = [splits.hashes["calibration"] for splits in (first, *seeded)]
    assert len(set(hashes)) == 3 and hashes[1] == hashes[3]
    pool = [ids(prose(500))[start : start + 10] for start in (*range(0, 60, 10), *range(130, 310, 10))]
    assert all(window in pool for window in seeded[0].calibration.tolist())


def test_a_calibration_seed_needs_more_text_than_the_splits_take(text, tmp_path):
    text.write_text(prose(139))
    with pytest.raises(ValueError, match=r"about 139 tokens.*more for data\.calibration_seed 10.*short of 1"):
        load_splits(settings(text, calibration_seed=0), tokenizer(), tmp_path)


def test_one_document_in_two_splits_is_refused_with_both_names(documents, tmp_path):
    lines = documents.read_text().splitlines()
    documents.write_text("\n".join([*lines[:6], lines[0], *lines[7:]]))
    with pytest.raises(ValueError, match=r"data\.source: line 7 of .* same text as line 1 .*calibration and"):
        load_splits(settings(documents), tokenizer(), tmp_path)


def test_a_document_may_be_twice_in_one_split(documents, tmp_path):
    lines = documents.read_text().splitlines()
    documents.write_text("\n".join([lines[0], *lines]))
    assert load_splits(settings(documents), tokenizer(), tmp_path).calibration.shape == (6, 10)


def test_a_test_source_with_text_of_another_split_is_refused_with_the_keys(text, other, tmp_path):
    text.write_text(prose(2000))
    long = {"window": 70, "calibration_tokens": 140, "search_tokens": 140}
    other.write_text("x" * 70 + prose(2000)[210:300])
    keys = r"1 of 2 pieces of the test split \(data\.test_source\) .* the search split \(data\.source\)"
    with pytest.raises(ValueError, match=keys):
        load_splits(settings(text, test_source=str(other), **long, test_tokens=140), tokenizer(), tmp_path)
    splits = load_splits(settings(text, **long), tokenizer(), tmp_path)
    keys = r"1 of 2 pieces of the test text other \(eval\.datasets\) .* the search split"
    with pytest.raises(ValueError, match=keys):
        check_test_windows(splits, {"other": torch.stack([splits.test[0], splits.search[1]])})


def test_hashes_differ_where_windows_differ(text, tmp_path):
    first = load_splits(settings(text), tokenizer(), tmp_path / "a").hashes
    assert load_splits(settings(text), tokenizer(), tmp_path / "b").hashes == first
    assert len(set(first.values())) == len(SPLITS)
    text.write_text(prose(200).swapcase())
    assert not set(load_splits(settings(text), tokenizer(), tmp_path / "a").hashes.values()) & set(first.values())


def test_the_same_text_is_tokenized_once_even_after_it_moved(text, tmp_path):
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
def test_changed_settings_cause_new_tokenization(change, text, tmp_path):
    counting = CountingTokenizer()
    load_splits(settings(text), counting, tmp_path)
    load_splits(settings(text, **change), counting, tmp_path)
    assert len(counting.texts) == 2


def test_a_changed_text_or_tokenizer_causes_new_tokenization(text, tmp_path):
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


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("pydoc", [("train", SPLITS)]),
        ("fineweb_edu", [("train", SPLITS)]),
        *(
            (name, [("train", ("calibration", "search")), ("validation", ("validation",)), ("test", ("test",))])
            for name in ("c4", "wikitext2")
        ),
    ],
)
def test_a_source_with_a_test_split_gives_test_and_validation_from_its_held_out_splits(source, expected):
    extracts = extracts_of(settings(source))
    assert [(extract.source, extract.source_split, tuple(extract.amounts)) for extract in extracts] == [
        (source, *row) for row in expected
    ]
