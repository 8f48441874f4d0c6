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
from hpc_cg.forcefield.coordinates import CoordinateMoments, fit_priors
from hpc_cg.forcefield.evaluator import evaluator
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
