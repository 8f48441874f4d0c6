"""Simulate an exported force field with OpenMM: Langevin dynamics of one molecule, written as a DCD.

    hpc-cg export study.toml --to forcefield.pt2
    python run.py forcefield.pt2 --steps 10000

Needs torch, an OpenMM that has PythonForce (8.6 has) and the files of the export; not hpc_cg.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import app, unit

TORCH = {"float32": torch.float32, "float64": torch.float64}


def force_of(path: Path, dtype: torch.dtype) -> openmm.PythonForce:
    """The force field as an OpenMM force: nm in, kJ/mol and kJ/mol/nm out."""
    model = torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path)

    def compute(state: openmm.State) -> tuple[float, np.ndarray]:
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        with torch.no_grad():
            energy, forces = model(torch.tensor(positions[None], dtype=dtype))
        return energy.item(), forces[0].double().numpy()

    return openmm.PythonForce(compute)


def molecule(beads: dict) -> tuple[openmm.System, app.Topology]:
    """A particle for each bead, and a topology with one residue, so that trajectories can be written."""
    system, topology = openmm.System(), app.Topology()
    residue = topology.addResidue("CG", topology.addChain())
    for name, mass in zip(beads["names"], beads["masses"], strict=True):
        system.addParticle(mass)
        topology.addAtom(name.rpartition(":")[2], None, residue)
    atoms = list(topology.atoms())
    for i, j in beads["bonds"]:
        topology.addBond(atoms[i], atoms[j])
    return system, topology


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("forcefield", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--timestep-ps", type=float, default=0.004)
    parser.add_argument("--friction-per-ps", type=float, default=1.0)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--platform", default="Reference", help="Reference, CPU, CUDA, ...")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()

    beads = json.loads(chosen.forcefield.with_suffix(".json").read_text(encoding="utf-8"))
    system, topology = molecule(beads)
    system.addForce(force_of(chosen.forcefield, TORCH[beads["dtype"]]))
    integrator = openmm.LangevinMiddleIntegrator(beads["temperature_K"], chosen.friction_per_ps, chosen.timestep_ps)
    integrator.setRandomNumberSeed(chosen.seed)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName(chosen.platform))

    simulation.context.setPositions(beads["example"]["positions_nm"])
    start = simulation.context.getState(getEnergy=True)
    energy = start.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    print(f"energy of the example: {energy:.6f} kJ/mol; exported with {beads['example']['energy_kJ_mol']:.6f}")

    simulation.context.setVelocitiesToTemperature(beads["temperature_K"], chosen.seed)
    trajectory = chosen.forcefield.with_suffix(".dcd")
    simulation.reporters.append(app.DCDReporter(str(trajectory), chosen.save_every))
    simulation.step(chosen.steps)
    print(f"{chosen.steps} steps of {chosen.timestep_ps} ps written to {trajectory}")


if __name__ == "__main__":
    main()
