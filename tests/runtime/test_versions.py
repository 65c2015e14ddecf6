"""Versions of libraries."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from evopress.runtime import versions


def test_a_checkout_that_is_not_installed_names_the_same_versions(monkeypatch):
    installed = versions.installed_versions()

    def of_others(name: str) -> str:
        if name == "evopress":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(versions, "version", of_others)
    monkeypatch.setattr(versions, "requires", of_others)
    assert versions.installed_versions() == installed
    assert versions.library_versions("evopress") == {"evopress": installed["evopress"]}


def test_libraries_that_are_missing_have_no_version():
    assert versions.library_versions("no-such-library") == {}


@pytest.mark.parametrize("name", ["python", "evopress", "torch", "transformers"])
def test_the_most_important_versions_are_named(name):
    assert versions.installed_versions()[name]
