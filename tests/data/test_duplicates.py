"""The same document or the same window of tokens in two splits is found."""

import pytest
import torch

from evopress.data.duplicates import DocumentsOfSplits, check_disjoint


def windows(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64)


def test_the_error_says_how_many_windows_are_in_which_two_splits():
    splits = {"the search split": windows([1, 2], [3, 4]), "the test split": windows([5, 6], [3, 4], [1, 2])}
    with pytest.raises(ValueError, match="2 of the 3 windows of the test split are also in the search split"):
        check_disjoint(splits)


def test_windows_that_differ_in_one_token_or_are_twice_in_one_split_are_no_copies():
    check_disjoint({"a": windows([1, 2, 3], [1, 2, 3]), "b": windows([1, 2, 4], [2, 2, 3], [3, 2, 1])})


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
