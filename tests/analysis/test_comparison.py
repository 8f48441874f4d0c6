"""Claims about a model judged against the reference."""

import numpy as np
import pytest

from hpc_cg.analysis.comparison import compare
from hpc_cg.analysis.estimate import contiguous_blocks, replica_blocks
from hpc_cg.analysis.marginals import angle_marginals, bond_marginals, term_label
from hpc_cg.analysis.sample import Sample
from hpc_cg.beads import bead_system
from hpc_cg.errors import TooFewFrames


def sample(positions: np.ndarray, n_blocks: int = 10) -> Sample:
    n = len(positions)
    return Sample(positions, np.ones(n), contiguous_blocks([n], max(n // n_blocks, 1)))


def by_label(comparison):
    return {judged.estimate.label: judged for judged in comparison.judged}


@pytest.fixture(scope="module")
def ensembles(peptide):
    """Reference with 40 % in α; a model with 60 % and bonds 1 % longer; both with 2 pm of noise."""
    random = np.random.default_rng(14)

    def ensemble(alpha_share: float, n: int) -> np.ndarray:
        alpha = random.uniform(size=n) < alpha_share
        psi = np.where(alpha, random.normal(-0.6, 0.3, n), random.normal(2.6, 0.3, n))
        return peptide(random.normal(-1.5, 0.3, n), psi) + random.normal(0, 0.002, (n, 6, 3))

    return sample(ensemble(0.4, 8000), 20), sample(1.01 * ensemble(0.6, 6000), 20)


def test_a_model_is_judged_by_its_known_faults(ensembles, six):
    rows = by_label(compare(*ensembles, six, seed=0, n_resamples=100))
    offset = rows["basin offset (α against the rest)"].estimate
    known = np.log(0.6 / 0.4) - np.log(0.4 / 0.6)
    assert abs(offset.value - known) < 3 * offset.error
    assert offset.error == pytest.approx(np.sqrt(1 / 0.24 / 8000 + 1 / 0.24 / 6000), rel=0.4)
    bonds = rows["bond length, mean Wasserstein distance"]
    assert bonds.estimate.value == pytest.approx(0.01 * np.mean([0.133, 0.146, 0.153, 0.153, 0.134]), rel=0.02)
    assert bonds.excess > 10 * bonds.estimate.error
    assert rows["mirrored share of the frames kept"].estimate.value == 0
    divergence, matched = rows["JS divergence φ, ψ"], rows["JS divergence φ, ψ, α weight matched"]
    assert divergence.excess > 5 * divergence.estimate.error
    assert abs(matched.excess) < 4 * matched.floor.spread + 2 * matched.estimate.error


def test_the_reference_judged_by_a_sample_of_itself_sits_on_the_floor(ensembles, six):
    reference = ensembles[0].positions
    halves = sample(reference[::2], 20), sample(reference[1::2], 20)
    for judged in compare(*halves, six, seed=0, n_resamples=50).judged:
        if judged.floor is not None:
            assert abs(judged.excess) < 4 * judged.floor.spread + 2 * judged.estimate.error, judged


def test_frames_of_weight_two_count_as_two_frames(ensembles, six):
    reference, model = ensembles
    first = model.positions[:1000]
    twice = Sample(np.concatenate([first, first]), np.ones(2000), np.tile(replica_blocks(20, 50), 2))
    heavy = Sample(first, np.full(1000, 2.0), replica_blocks(20, 50))
    left, right = (by_label(compare(reference, s, six, 0, n_resamples=10)) for s in (twice, heavy))
    for label, judged in left.items():
        assert judged.estimate.value == pytest.approx(right[label].estimate.value), label


def test_the_same_frames_give_the_same_judgement(ensembles, six):
    assert compare(*ensembles, six, 3, n_resamples=5) == compare(*ensembles, six, 3, n_resamples=5)


def test_a_basin_never_visited_is_left_out_and_said_so(ensembles, six, peptide):
    beta = sample(peptide(np.full(500, -1.5), np.random.default_rng(15).normal(2.6, 0.1, 500)))
    found = compare(ensembles[0], beta, six, 0, n_resamples=10)
    assert any("basin offset" in sentence for sentence in found.left_out)
    assert by_label(found)["JS divergence φ, ψ"].estimate.value > 0.1


def test_mirrored_frames_are_counted(ensembles, six):
    reference, model = ensembles
    positions = model.positions.copy()
    positions[:1500] *= np.array([1.0, 1.0, -1.0])
    found = by_label(compare(reference, sample(positions, 20), six, 0, n_resamples=5))
    assert found["mirrored share of the frames kept"].estimate.value == pytest.approx(0.25)


def test_beads_without_dihedrals_are_judged_by_bonds_alone():
    pair = bead_system(["A:CA", "B:CA"], [0, 1], [12.0, 12.0], [(0, 1)])
    positions = np.random.default_rng(16).normal(0, 1, (200, 2, 3))
    labels = [j.estimate.label for j in compare(sample(positions), sample(positions), pair, 0, n_resamples=5).judged]
    assert labels == ["bond length, mean Wasserstein distance", "bond width, model over reference"]


def test_an_empty_model_is_refused(ensembles, six):
    empty = Sample(np.zeros((0, 6, 3)), np.zeros(0), np.zeros(0, dtype=int))
    with pytest.raises(TooFewFrames, match="with the model"):
        compare(ensembles[0], empty, six, 0)


def test_marginals_name_each_term_once(ensembles, six):
    labels = [m.label for m in bond_marginals(*ensembles, six) + angle_marginals(*ensembles, six)]
    assert len(set(labels)) == len(labels) == 10
    assert term_label(six, (1, 2, 3)) == "N–CA–CB"
    assert term_label(six, (0, 1)) == "ACE1:C–ALA2:N"
    calpha = bead_system(("TYR1:CA", "TYR2:CA"), (0, 0), (12.0, 12.0), ((0, 1),))
    assert term_label(calpha, (0, 1)) == "TYR1–TYR2"
