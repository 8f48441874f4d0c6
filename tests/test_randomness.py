"""Numbers of one item do not depend on which others are asked for with it."""

import numpy as np
import pytest

from hpc_cg.randomness import PerItem

ITEMS = np.array([4, 9, 2, 7])


def drawn(items: np.ndarray) -> list[np.ndarray]:
    key, n = PerItem(3, "test", 11, items), len(items)
    return [
        key.standard_normal((n, 2, 3), dtype=np.float32),
        key.random(n),
        key.uniform(-1.0, 1.0, (n, 2)),
        key.integers(0, 2, (n, 3), dtype=np.int8),
    ]


def test_an_item_has_the_same_numbers_in_any_company() -> None:
    for whole, part in zip(drawn(ITEMS), drawn(ITEMS[[2, 0]]), strict=True):
        np.testing.assert_array_equal(whole[[2, 0]], part)
        assert whole.dtype == part.dtype


def test_items_places_and_seeds_differ() -> None:
    assert len(set(PerItem(3, "test", 11, ITEMS).random(4).tolist())) == 4
    assert PerItem(3, "test", 12, ITEMS).random(4)[0] != PerItem(3, "test", 11, ITEMS).random(4)[0]


def test_what_would_not_be_drawn_per_item_is_refused() -> None:
    with pytest.raises(AttributeError, match="draws by integers, random"):
        _ = PerItem(3, "test", 11, ITEMS).exponential
    with pytest.raises(ValueError, match="for 4 items"):
        PerItem(3, "test", 11, ITEMS).random(3)
