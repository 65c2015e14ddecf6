"""The same document or the same window of tokens in two splits is found."""

import pytest
import torch

from evopress.data.duplicates import MIN_TOKENS, DocumentsOfSplits, check_disjoint


def random_windows(num_windows: int, length: int) -> torch.Tensor:
    return torch.randint(1000, (num_windows, length), generator=torch.Generator().manual_seed(0))


def test_the_error_says_how_many_pieces_are_in_which_two_splits():
    one, two, three = random_windows(3, MIN_TOKENS)
    splits = {"the search split": torch.stack([one, two]), "the test split": torch.stack([three, two, one])}
    with pytest.raises(ValueError, match="2 of 3 pieces of the test split are also in the search split"):
        check_disjoint(splits)


def test_windows_that_differ_in_one_token_or_are_twice_in_one_split_are_no_copies():
    one, two = random_windows(2, MIN_TOKENS)
    other = one.clone()
    other[-1] += 1
    check_disjoint({"a": torch.stack([one, one]), "b": torch.stack([other, one.flip(0), two, two])})


def test_short_windows_are_copies_only_where_many_in_a_row_are_the_same():
    text = random_windows(8, MIN_TOKENS // 4)
    check_disjoint({"a": text, "b": text[2:6]})  # not the same four in a row
    check_disjoint({"a": text, "b": text[:3]})
    with pytest.raises(ValueError, match="1 of 1 pieces of b are also in a"):
        check_disjoint({"a": text, "b": text[4:]})


LONG = "".join(map(str, range(200)))


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (("one", True), ("one", True), True),
        (("one", True), ("\n\none\n", True), True),
        (("one", True), ("two", True), False),
        (("one", True), ("one and more", True), False),
        ((LONG[:150], False), (LONG[:300], False), True),
        ((LONG[:150], False), (LONG, True), True),
        ((LONG, True), (LONG[:150], False), True),
        ((LONG, True), (LONG[:150], True), False),
        ((LONG[:150], False), (LONG[:140] + "x", False), False),
        ((LONG, True), (LONG + "x", False), False),
    ],
)
def test_documents_are_the_same_if_they_are_equal_as_far_as_both_were_read(first, second, is_same):
    documents = DocumentsOfSplits()
    documents.add(first[0], is_whole=first[1], split="search", name="first.txt")
    if not is_same:
        documents.add(second[0], is_whole=second[1], split="test", name="second.txt")
        return
    with pytest.raises(ValueError, match=r"second\.txt has the same text as first\.txt, .* search and test: remove"):
        documents.add(second[0], is_whole=second[1], split="test", name="second.txt")


def test_empty_documents_are_no_copies_of_each_other():
    documents = DocumentsOfSplits()
    for split in ("search", "test"):
        documents.add(" \n", is_whole=True, split=split, name="empty.txt")
