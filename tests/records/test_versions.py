"""Names of versions: there and back."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.records.versions import BASE, is_version, served_version, version_age, version_name, version_number

numbers = st.integers(0, 10**9)


@given(numbers)
def test_a_number_survives_its_name(number: int) -> None:
    assert is_version(version_name(number))
    assert version_number(version_name(number)) == number


@given(numbers, st.text())
def test_a_served_name_carries_its_version(number: int, name: str) -> None:
    assert served_version(f"{name}@{version_name(number)}") == version_name(number)


@given(numbers, numbers)
def test_age_without_a_lineage_is_that_of_the_numbers(one: int, other: int) -> None:
    assert version_age(version_name(one), version_name(other)) == (other - one if other >= one else inf)


def test_age_counts_generations_along_the_lineage() -> None:
    lineage = ["v0005", "v0003", "v0000"]
    ages = {sampled: version_age(sampled, "v0005", lineage) for sampled in map(version_name, range(7))}
    assert ages == {"v0005": 0, "v0003": 1, "v0000": 2} | dict.fromkeys(("v0001", "v0002", "v0004", "v0006"), inf)


def test_the_base_is_number_0() -> None:
    assert (version_name(0), version_number(BASE), version_name(7), version_name(12345)) == (BASE, 0, "v0007", "v12345")


@pytest.mark.parametrize(
    "text", [None, "", "v1", "v001", "0001", "V0001", "v0001.partial", "v0001\n", " v0001", "vvvvv"]
)
def test_what_is_no_version(text: str | None) -> None:
    assert not is_version(text)


@pytest.mark.parametrize("name", ["", "tiny", "v0001", "tiny@", "tiny@v1", "tiny@v0001@", "tiny@v0001:latest", "a@b"])
def test_a_name_without_a_version(name: str) -> None:
    assert served_version(name) is None


@pytest.mark.parametrize("one", [None, "", "latest"])
def test_what_is_no_version_has_no_age(one: str | None) -> None:
    assert version_age(one, "v0001") is None
    assert version_age("latest", "latest") == 0
