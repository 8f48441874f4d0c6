"""A force field that left the house: other processes, without this package, compute what it computes here."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_cg.errors import HpcCgError
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.evaluator import evaluator
from hpc_cg.forcefield.fitting import Repulsion, fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.portable import Portable, write_portable
from hpc_cg.forcefield.schnet import SchNetConfig

ELSEWHERE = """
import sys
class Nothing:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("hpc_cg", "jobs", "launch"):
            raise ImportError(name + " must not be needed")
sys.meta_path.insert(0, Nothing())
import numpy as np, torch
path, positions, found = sys.argv[1:]
model = torch.export.load(path).module() if path.endswith(".pt2") else torch.jit.load(path)
for name in ("one", "many"):
    frames = torch.from_numpy(np.load(positions)[name])
    energy, forces = model(frames)
    np.savez(found + "-" + name, energy=energy.numpy(), forces=forces.numpy())
assert not any(name.split(".")[0] == "hpc_cg" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def with_torsions(alanine, frames):
    """A force field of every prior and three blocks, in float64."""
    prior = fit_priors(CoordinateMoments.of(frames, alanine), 300.0, torsion_order=2)
    config = SchNetConfig(n_filters=24, n_blocks=3, terminal_widths=(16, 8))
    return ForceField(alanine, prior, config, seed=3).double()


def test_plain_operations_give_what_the_force_field_gives(with_torsions, positions):
    energy, forces = Portable(with_torsions, torch.float64)(positions)
    wanted = with_torsions(positions)
    assert torch.allclose(energy, wanted.energy, rtol=1e-12)
    assert torch.allclose(forces, wanted.forces, rtol=1e-10, atol=1e-8)


def test_forces_are_minus_the_gradient_that_torch_takes_of_the_energy(with_torsions, positions):
    moved = positions.clone().requires_grad_(True)
    energy, forces = Portable(with_torsions, torch.float64)(moved)
    (gradient,) = torch.autograd.grad(energy.sum(), moved)
    assert torch.allclose(forces, -gradient, rtol=1e-9, atol=1e-7)


@pytest.fixture(scope="module")
def left(with_torsions, frames, tmp_path_factory):
    """Both forms of it, the first in single precision and the second in double."""
    folder = tmp_path_factory.mktemp("left")
    write_portable(folder / "a.pt2", with_torsions, 300.0, frames[0])
    write_portable(folder / "b.pt", with_torsions, 310.0, frames[0], torch.float64, {"study": "mine"})
    return folder


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"), [("a.pt2", torch.float32, 2e-5), ("b.pt", torch.float64, 1e-11)]
)
def test_a_process_with_torch_alone_computes_the_same(with_torsions, frames, left, tmp_path, name, dtype, tolerance):
    numbers = {"one": frames[:1], "many": frames[3:20]}
    np.savez(tmp_path / "positions.npz", **{k: torch.tensor(x).to(dtype).numpy() for k, x in numbers.items()})
    line = [sys.executable, "-c", ELSEWHERE, str(left / name), str(tmp_path / "positions.npz"), str(tmp_path / "found")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    evaluate = evaluator(with_torsions, dtype, tabulated=False)
    for number, places in numbers.items():
        wanted, found = evaluate(torch.tensor(places).to(dtype)), np.load(tmp_path / f"found-{number}.npz")
        assert found["energy"].dtype == str(dtype).removeprefix("torch.")
        scale = wanted.forces.square().mean().sqrt().item()
        assert np.abs(found["forces"] - wanted.forces.numpy()).max() < 10 * tolerance * scale
        assert found["energy"] == pytest.approx(wanted.energy.numpy(), rel=tolerance, abs=tolerance)


def test_what_lies_beside_says_what_the_beads_are_and_lets_a_program_check_itself(with_torsions, left):
    beside = ["a-network.npz", "a.json", "a.pt2", "b-network.npz", "b.json", "b.pt"]
    assert sorted(path.name for path in left.iterdir()) == beside
    told = json.loads((left / "b.json").read_text(encoding="utf-8"))
    system = with_torsions.system
    assert told["names"] == list(system.names) and told["masses"] == list(system.masses)
    assert [tuple(bond) for bond in told["bonds"]] == list(system.bonds) and told["types"] == list(system.types)
    assert told["temperature_K"] == 310.0 and told["study"] == "mine" and told["dtype"] == "float64"
    model = torch.jit.load(str(left / "b.pt"))
    energy, forces = model(torch.tensor(told["example"]["positions_nm"], dtype=torch.float64))
    assert energy.shape == () and energy.item() == pytest.approx(told["example"]["energy_kJ_mol"], rel=1e-12)
    assert forces.numpy() == pytest.approx(np.array(told["example"]["forces"]), rel=1e-9, abs=1e-9)


def test_filters_and_weights_are_the_whole_network_for_who_writes_it_down_anew(with_torsions, frames, left):
    arrays = np.load(left / "a-network.npz")

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ arrays[f"{name}.weight"].T + arrays.get(f"{name}.bias", 0.0)

    def filters(block: int, distances: np.ndarray) -> np.ndarray:
        """Cubic Hermite interpolation between the knots."""
        knots, value, slope = arrays["knots_nm"], *(arrays[f"filter_{block}_{k}"] for k in ("values", "slopes"))
        width = knots[1] - knots[0]
        row = (distances / width).astype(int)
        t = (distances / width - row)[..., None]
        low = value[row] * (1 + 2 * t) * (1 - t) ** 2 + width * slope[row] * t * (1 - t) ** 2
        return low + value[row + 1] * t**2 * (3 - 2 * t) - width * slope[row + 1] * t**2 * (1 - t)

    places = frames[7]
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    x = arrays["embedding.weight"][arrays["bead_types"]]
    for block in range(3):
        others = filters(block, distances) * (1 - np.eye(6))[..., None]
        received = np.einsum("ijf,jf->if", others, linear(f"blocks.{block}.inward", x))
        x = x + linear(f"blocks.{block}.outward", np.tanh(linear(f"blocks.{block}.mix", received)))
    for layer in range(2):
        x = np.tanh(linear(f"readout.{layer}", x))
    energy = float(arrays["energy_unit"]) * linear("last", x).sum()
    assert energy == pytest.approx(with_torsions.network(torch.tensor(places[None])).energy.item(), abs=1e-6)


def prior_energy(told: dict, places: np.ndarray) -> dict[str, float]:
    """What docs/elsewhere.md says of the priors, term by term, from the JSON alone."""
    p = {name: np.array(values) for name, values in told["prior"].items()}

    def apart(pairs) -> np.ndarray:
        return np.array([np.linalg.norm(places[j] - places[i]) for i, j in pairs])

    def units(centre: int, others) -> list[np.ndarray]:
        return [(places[other] - places[centre]) / np.linalg.norm(places[other] - places[centre]) for other in others]

    def harmonic(name: str, q) -> float:
        return float((0.5 * p[f"{name}_k"] * (np.array(q) - p[f"{name}_0"]) ** 2).sum())

    def angle(i: int, j: int, k: int, m: int) -> float:
        b1, b2, b3 = places[j] - places[i], places[k] - places[j], places[m] - places[k]
        near, far = np.cross(b1, b2), np.cross(b2, b3)
        return np.arctan2(np.linalg.norm(b2) * (b1 @ far), near @ far)

    improper = []
    for centre, *others in told["impropers"]:
        a, b, c = units(centre, others)
        improper.append(np.cross(a, b) @ c)
    n = np.arange(1, p["torsion_sin"].shape[1] + 1)
    theta = np.array([angle(*quad) for quad in told["torsions"]])[:, None]
    r, sigma, strength = apart(p["repulsion_pairs"]), p["repulsion_sigma"], told["repulsion"]["energy_kJ_mol"]
    near = told["repulsion"]["straight_below"] * sigma
    tangent = strength * (sigma / near) ** 6 * (1 - 6 * (r - near) / near)
    return {
        "bonds": harmonic("bond", apart(told["bonds"])),
        "angles": harmonic("angle", [np.dot(*units(centre, (i, k))) for i, centre, k in told["angles"]]),
        "impropers": harmonic("improper", improper),
        "torsions": float((p["torsion_sin"] * np.sin(n * theta) + p["torsion_cos"] * np.cos(n * theta)).sum()),
        "repulsion": float(np.where(r < near, tangent, strength * (sigma / r) ** 6).sum()),
    }


def test_the_documentation_and_the_numbers_beside_are_the_whole_of_the_priors(alanine, frames, tmp_path):
    repulsion = Repulsion(min_bonds=3, percentile=0.0)
    prior = fit_priors(CoordinateMoments.of(frames, alanine), 300.0, torsion_order=3, repulsion=repulsion)
    forcefield = ForceField(alanine, prior, SchNetConfig(n_filters=4, n_blocks=1, terminal_widths=(4,))).double()
    write_portable(tmp_path / "a.pt", forcefield, 300.0, frames[0])
    told = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    crowded = frames[11] * np.array([0.15, 1.0, 1.0])  # flat: two beads of a pair are closer than a quarter of σ
    crowded[0] = crowded[5] + (0.0, 0.03, 0.02)
    pairs, sigma = prior.repulsion_pairs, prior.repulsion_sigma
    apart = np.linalg.norm(crowded[pairs[:, 1]] - crowded[pairs[:, 0]], axis=1)
    assert (apart < sigma / 4).any() and (apart > sigma / 4).any() and len(told["torsions"]) == 2
    for places in (frames[7], crowded):
        found = prior_energy(told, places)
        assert all(abs(energy) > 0.01 for energy in found.values()), found
        wanted = forcefield.prior(torch.tensor(places[None])).energy.item()
        assert sum(found.values()) == pytest.approx(wanted, rel=1e-6)  # whose constants are of float32


def test_another_suffix_is_refused_and_nothing_is_written(with_torsions, frames, tmp_path):
    with pytest.raises(HpcCgError, match=r"suffix '.onnx'.*\.pt2 \(torch.export\)"):
        write_portable(tmp_path / "a.onnx", with_torsions, 300.0, frames[0])
    assert list(Path(tmp_path).iterdir()) == []


def test_a_molecule_of_one_term_and_one_block_leaves_too(alanine, frames, tmp_path):
    plain = replace(alanine, bonds=alanine.bonds[:1], angles=(), dihedrals=(), impropers=())
    prior = fit_priors(CoordinateMoments.of(frames, plain), 300.0)
    forcefield = ForceField(plain, prior, SchNetConfig(n_filters=8, n_blocks=1, terminal_widths=(4,)))
    write_portable(tmp_path / "a.pt", forcefield, 300.0, frames[0])
    some = torch.tensor(frames[:4], dtype=torch.float32)
    found = torch.jit.load(str(tmp_path / "a.pt"))(some)
    assert torch.allclose(found[1], forcefield(some).forces, rtol=1e-4, atol=1e-3)
