"""Profiles and questions as JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evopress.search.base import Table
from evopress.search.encoding import decode, encode, question_key


def test_the_profile_of_a_table_is_part_of_its_key():
    keys = [question_key(Table("switch_effects", 8, (1.0,), profile)) for profile in ((0, 1), (1, 0))]
    assert keys[0] != keys[1] and keys[0]["profile"] == encode((0, 1))
    assert "profile" not in question_key(Table("cosine", 8))


@pytest.mark.slow
@given(st.lists(st.integers(0, 61), max_size=300).map(tuple))
def test_profiles_survive_encoding(profile):
    assert decode(json.loads(json.dumps(encode(profile)))) == profile
