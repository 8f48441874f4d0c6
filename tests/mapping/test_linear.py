"""Maps of any fullness are the matrix product, with the same bits however the frames are blocked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_cg.mapping.linear import FRAMES, Product


def matrix_of(kind: str, n_rows: int, n_atoms: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    matrix = np.zeros((n_rows, n_atoms))
    full = {"picks": 1, "few": min(3, n_atoms), "dense": n_atoms}[kind]
    for number, row in enumerate(matrix):
        atoms = generator.choice(n_atoms, full - (number % 2 if kind == "few" and full > 1 else 0), replace=False)
        row[atoms] = 1.0 if kind == "picks" else generator.normal(size=len(atoms))
    return matrix


@pytest.mark.parametrize("kind", ["picks", "few", "dense"])
def test_product_is_the_matrix_product(kind):
    matrix = matrix_of(kind, 40, 200)
    frames = np.random.default_rng(1).normal(size=(2, 75, 200, 3)).astype(np.float32)
    product = Product.of(matrix)
    assert type(product.apply).__name__ == f"_{kind.title()}"
    expected = np.einsum("ba,sfax->sfbx", matrix, frames.astype(np.float64))
    np.testing.assert_allclose(product(frames), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(product(frames[0, 3]), product(frames)[0, 3])
    assert product(frames[:, :0]).shape == (2, 0, 40, 3)


@pytest.mark.parametrize("kind", ["picks", "few", "dense"])
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 300), st.integers(1, 3 * FRAMES))
@settings(max_examples=25, deadline=None)
def test_frame_gives_the_same_bits_in_whatever_block_it_comes(kind, seed, n_rows, n_atoms, block):
    product = Product.of(matrix_of(kind, n_rows, n_atoms, seed))
    frames = 500 * np.random.default_rng(seed).normal(size=(200, n_atoms, 3)).astype(np.float32)
    at_once = product(frames)
    offset = seed % block
    for start in [0, *range(offset or block, 200, block)]:
        stop = offset if start == 0 and offset else start + block
        np.testing.assert_array_equal(product(frames[start:stop]), at_once[start:stop])


def test_bits_do_not_depend_on_the_block_for_a_large_dense_map():
    product = Product.of(matrix_of("dense", 150, 1500))
    frames = 500 * np.random.default_rng(3).normal(size=(100, 1500, 3))
    at_once = product(frames)
    for start, stop in ((0, 1), (1, 2), (5, 70), (37, 100), (99, 100)):
        np.testing.assert_array_equal(product(frames[start:stop]), at_once[start:stop])


def test_frame_of_no_numbers_spoils_no_other():
    frames = np.random.default_rng(4).normal(size=(10, 30, 3))
    for kind in ("picks", "few", "dense"):
        product = Product.of(matrix_of(kind, 20, 30))
        clean = product(frames)
        broken = frames.copy()
        broken[4] = np.nan
        found = product(broken)
        assert np.isnan(found[4]).all()
        np.testing.assert_array_equal(np.delete(found, 4, axis=0), np.delete(clean, 4, axis=0))
