"""The examples run as their first lines say, and other programs compute with our force field what we compute."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import mdtraj
import numpy as np
import pytest
import torch

from hpc_cg.beads import bead_system
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.evaluator import Evaluate, evaluator
from hpc_cg.forcefield.fitting import fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.portable import write_portable
from hpc_cg.forcefield.schnet import SchNetConfig

ALONE = """
import runpy, sys
sys.modules["hpc_cg"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
RUN = Path(__file__).parents[1] / "examples" / "openmm" / "run.py"
PLACES = ((0, 0, 0), (0.13, 0.02, 0), (0.2, 0.14, 0.02), (0.34, 0.13, 0.06), (0.42, 0.24, 0.05))
FRAMES = np.array(PLACES) + np.random.default_rng(1).normal(0, 0.005, (200, 5, 3))
NAMES = ("ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:C", "NME3:N")
MASSES = (12.011, 14.007, 12.011, 12.011, 14.007)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluate]:
    """A force field on disk, for torch alone, and what it computes here."""
    openmm = pytest.importorskip("openmm")
    if not hasattr(openmm, "PythonForce"):
        pytest.skip(f"OpenMM {openmm.__version__} has no PythonForce")
    system = bead_system(NAMES, range(5), MASSES, [(i, i + 1) for i in range(4)])
    prior = fit_priors(CoordinateMoments.of(FRAMES, system), 300.0, torsion_order=2)
    forcefield = ForceField(system, prior, SchNetConfig(n_filters=16, terminal_widths=(16,)), seed=2)
    path = tmp_path_factory.mktemp("exported") / "forcefield.pt"
    write_portable(path, forcefield, 300.0, FRAMES[0], torch.float64)
    return path, evaluator(forcefield, torch.float64, tabulated=False)


@pytest.fixture(scope="module")
def run_file() -> ModuleType:
    spec = spec_from_file_location("openmm_example", RUN)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_openmm_finds_the_energies_and_forces_that_we_find(exported, run_file):
    import openmm
    from openmm import unit

    path, evaluate = exported
    system, _ = run_file.molecule(json.loads(path.with_suffix(".json").read_text()))
    system.addForce(run_file.force_of(path, torch.float64))
    integrator, platform = openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, integrator, platform)
    wanted = evaluate(torch.tensor(FRAMES[:5]))
    for frame, energy, forces in zip(FRAMES, wanted.energy, wanted.forces, strict=False):
        context.setPositions(frame)
        state = context.getState(getEnergy=True, getForces=True)
        assert state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) == pytest.approx(energy.item())
        found = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        assert found == pytest.approx(forces.numpy(), rel=1e-9, abs=1e-6)


def test_the_openmm_example_simulates_without_this_package(exported, tmp_path):
    path, _ = exported
    line = [sys.executable, "-c", ALONE, str(RUN), str(path), "--steps", "200", "--save-every", "10"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.split()
    assert told[4] == told[8], done.stdout
    topology = mdtraj.Topology()
    residue = topology.add_residue("CG", topology.add_chain())
    for name in NAMES:
        topology.add_atom(name, mdtraj.element.carbon, residue)
    positions = mdtraj.load(str(path.with_suffix(".dcd")), top=topology).xyz
    assert positions.shape == (20, 5, 3)
    bonds = np.linalg.norm(np.diff(positions, axis=1), axis=-1)
    wanted = np.linalg.norm(np.diff(FRAMES, axis=1), axis=-1)
    assert bonds.mean(axis=0) == pytest.approx(wanted.mean(axis=0), abs=0.02)
    assert positions.std(axis=0).min() > 1e-3
