"""Every test text of a run has a name of its own, and is measured once."""

import json

import pytest

from evopress.data.test_sets import check_text_column, list_test_sets, unique_names
from tests.data.texts import prose, settings


@pytest.fixture
def languages(tmp_path):
    """Two texts of one name."""
    for index, language in enumerate(("en", "de")):
        (tmp_path / language).mkdir()
        (tmp_path / language / "test.txt").write_text(prose(100, seed=index))
    return [str(tmp_path / language / "test.txt") for language in ("en", "de")]


def test_a_source_is_called_by_its_name_or_that_of_its_file(text):
    assert unique_names(["pydoc", "c4", str(text)]) == ["pydoc", "c4", "text"]


def test_files_of_one_name_are_told_apart_by_their_folders(languages, tmp_path):
    assert unique_names(languages) == ["en/test", "de/test"]
    (tmp_path / "en" / "test.jsonl").write_text("")
    (tmp_path / "c4.txt").write_text("")
    same_folder = [languages[0], str(tmp_path / "en" / "test.jsonl"), "c4", str(tmp_path / "c4.txt")]
    assert unique_names(same_folder) == ["en/test.txt", "en/test.jsonl", "c4", f"{tmp_path.name}/c4"]


def test_names_are_unique_however_much_the_paths_have_in_common(tmp_path):
    paths = [tmp_path / folder / "en" / "test.txt" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("")
    assert unique_names([str(path) for path in paths]) == [str(path.resolve()) for path in paths]


def test_the_first_test_set_is_the_test_split_with_its_own_number_of_tokens(languages, text):
    sets = list_test_sets(settings(text, test_source=languages[0]), [languages[1]], None)
    assert [(one.name, one.num_tokens, one.setting) for one in sets] == [
        ("en/test", 20, "data.test_tokens"),
        ("de/test", None, "eval.test_tokens"),
    ]
    assert sets[1].about_tokens() == 25 and sets[0].about_tokens() == 20
    assert sets[0].convention() == "one text, tokenised as a whole"


def test_a_test_text_that_is_named_twice_is_refused(languages, text):
    for test_source, sources in (
        (languages[0], languages),
        (None, [languages[0]] * 2),
        (None, [f"{text.parent}/./text.txt"]),
    ):
        with pytest.raises(ValueError, match=r"eval\.datasets names .* leave it out"):
            list_test_sets(settings(text, test_source=test_source), sources, 20)


def test_a_source_without_a_test_split_is_not_measured_whole(text):
    with pytest.raises(
        ValueError, match=r"eval\.test_tokens is null.*fineweb_edu has none: set eval\.test_tokens to a number"
    ):
        list_test_sets(settings(text), ["fineweb_edu"], None)
    list_test_sets(settings(text), ["wikitext2", "c4"], None)
    with pytest.raises(ValueError, match=r"data\.test_tokens is null"):
        settings("fineweb_edu", test_tokens=None)


def test_a_text_column_that_no_text_has_is_refused(text, documents):
    for source in ("wikitext2", "pydoc", text):
        with pytest.raises(ValueError, match=r"data\.text_column is 'body', but .* leave data\.text_column=text"):
            check_text_column(settings(source, text_column="body"), ["c4"])
    check_text_column(settings(text, text_column="body"), [str(documents)])
    check_text_column(settings("c4", text_column="body", test_source=str(documents)), [])
    check_text_column(settings("c4"), [])


def test_about_as_many_tokens_are_expected_as_a_text_has(documents):
    (one, other) = list_test_sets(settings("wikitext2", test_tokens=None), [str(documents)], None)
    assert 240_000 < one.about_tokens() < 350_000
    size = len("".join(json.dumps(json.loads(line)) for line in documents.read_text().splitlines()))
    assert abs(other.about_tokens() - size / 4) < 5
