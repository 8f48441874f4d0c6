"""Names of bead types: the same in two molecules where the beads mean the same, and only there."""

import pytest

from hpc_cg.mapping.types import type_names


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (("calpha", ""), ("calpha", "residue"), True),
        (("five-bead", ""), ("five-bead", ""), True),
        (("calpha", ""), ("com", ""), False),
        (("heavy", "residue"), ("heavy", "element"), False),
        (("alanine-six", ""), ("alanine-six", ""), False),
        (("calpha", "unique"), ("calpha", "unique"), False),
    ],
)
def test_molecules_share_types_of_one_map_and_never_those_that_are_unique(first, second, shared) -> None:
    one, two = type_names((0, 7, 7), *first, "one"), type_names((7, 0), *second, "two")
    assert one[1] == one[2] != one[0]
    assert (set(one) == set(two)) == shared and (not set(one) & set(two)) == (not shared)
