"""A real all-atom archive, made here: alanine dipeptide (ACE-ALA-NME, 22 atoms) in implicit solvent.

OpenMM runs amber14 with OBC2 solvent, bonds to hydrogen constrained, hydrogens of 3 u, by Langevin dynamics
(middle scheme, friction 1/ps) in steps of 4 fs. The molecule is built from internal coordinates of an L
residue, in the alpha or in the beta region by turns, so that independent runs start apart. Forces are those
of the potential: the forces of the constraints are not in them, which is what hpc_cg.mapping expects.

Eastman et al., J. Phys. Chem. B 128, 109 (2024), doi 10.1021/acs.jpcb.3c06662; Maier et al. (2015), doi
10.1021/acs.jctc.5b00255; Onufriev, Bashford & Case (2004), doi 10.1002/prot.20033; Zhang et al. (2019), doi
10.1021/acs.jpca.9b02771. Bond lengths and angles: Engh & Huber (1991), doi 10.1107/S0108767391001071.
"""

import io
import os
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from jaxtyping import Float64

from hpc_cg.errors import BadFrames, HpcCgError, MissingExtra
from hpc_cg.files import PARTIAL, explain_write_errors, fsync_folder, write_atomic

TIMESTEP_PS = 0.004
FRICTION_PER_PS = 1.0
HYDROGEN_MASS = 3.0
EQUILIBRATION_PS = 20.0
FRAMES_AT_ONCE = 100
"""Frames held in memory between writes, and between words of progress."""

CHUNK_FRAMES = 1000
"""Frames in one chunk of the file."""

STARTS = ((-65.0, -40.0), (-80.0, 150.0))
"""(phi, psi) in degrees from which even and odd seeds start: alpha and beta."""

HEAVY_ATOMS = (
    # residue, name, bonded to, angle with, dihedral with, nm, degrees, (degrees, + n phi, + n psi)
    ("ACE", "CH3", 0, 0, 0, 0.0, 0.0, (0.0, 0, 0)),
    ("ACE", "C", 0, 0, 0, 0.1507, 0.0, (0.0, 0, 0)),
    ("ACE", "O", 1, 0, 0, 0.1231, 121.8, (0.0, 0, 0)),
    ("ALA", "N", 1, 0, 2, 0.1329, 116.6, (180.0, 0, 0)),
    ("ALA", "CA", 3, 1, 0, 0.1458, 121.7, (180.0, 0, 0)),
    ("ALA", "CB", 4, 3, 1, 0.1530, 110.4, (-122.6, 1, 0)),
    ("ALA", "C", 4, 3, 1, 0.1525, 111.0, (0.0, 1, 0)),
    ("ALA", "O", 6, 4, 3, 0.1231, 120.5, (180.0, 0, 1)),
    ("NME", "N", 6, 4, 3, 0.1329, 116.6, (0.0, 0, 1)),
    ("NME", "C", 8, 6, 4, 0.1458, 121.7, (180.0, 0, 0)),
)
"""The ten heavy atoms by internal coordinates; the first three span a plane of their own."""


def write_topology(path: Path) -> None:
    """Write atoms, bonds and a relaxed structure as PDB, in the atom order of the trajectories.

    Raises MissingExtra without OpenMM, FolderNotWritable, DiskFull.
    """
    app, unit = _openmm().app, _openmm().unit
    molecule = _molecule(STARTS[0])
    simulation = _simulation(molecule, temperature_K=300.0, seed=0)
    simulation.minimizeEnergy()
    relaxed = _positions(simulation.context.getState(positions=True)) * unit.nanometer
    text = io.StringIO()
    app.PDBFile.writeModel(molecule.topology, relaxed, text)
    app.PDBFile.writeFooter(molecule.topology, text)

    def write(file: BinaryIO) -> None:
        file.write(text.getvalue().encode())

    write_atomic(path, write)


def run_trajectory(
    path: Path,
    *,
    seed: int,
    temperature_K: float,
    n_frames: int,
    frame_ps: float,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Minimise, equilibrate, run, and write one trajectory as HDF5; the file appears when it is whole.

    seed       of velocities and of the bath; even seeds start in alpha, odd ones in beta
    frame_ps   time between frames, a multiple of the 0.004 ps step
    progress   called with the number of frames that are written
    Datasets: positions (frame atom 3; nm, float32, each frame centred), forces (frame atom 3; kJ/mol/nm,
    float32), potential (frame; kJ/mol, float64). Raises MissingExtra without OpenMM, BadFrames where the run
    blows up, FolderNotWritable, DiskFull, and HpcCgError for a time between frames that is no multiple of the
    step.
    """
    steps = _steps(frame_ps)
    molecule = _molecule(STARTS[seed % 2])
    simulation = _simulation(molecule, temperature_K, seed)
    attributes = {
        "seed": seed,
        "temperature_K": temperature_K,
        "stride_ps": frame_ps,
        "timestep_ps": TIMESTEP_PS,
        "units": "nm, ps, kJ/mol/nm",
        "force_field": "amber14-all + OBC2",
        "constraints": "bonds to H",
    }
    with (
        _openmm_errors(f"{n_frames} frames of alanine dipeptide at {temperature_K} K"),
        _atomic_h5(path) as file,
    ):
        simulation.minimizeEnergy()
        simulation.context.setVelocitiesToTemperature(temperature_K, _openmm_seed(seed))
        simulation.step(round(EQUILIBRATION_PS / TIMESTEP_PS))
        file.attrs.update(attributes)
        datasets = _datasets(file, n_frames, molecule.topology.getNumAtoms())
        for start in range(0, n_frames, FRAMES_AT_ONCE):
            stop = min(start + FRAMES_AT_ONCE, n_frames)
            blocks = zip(*(_frame(simulation, steps) for _ in range(start, stop)), strict=True)
            for dataset, block in zip(datasets, blocks, strict=True):
                dataset[start:stop] = np.stack(block)
            file.attrs["written"] = stop
            if progress is not None:
                progress(stop)


def heavy_atoms(phi: float, psi: float) -> Float64[np.ndarray, "heavy 3"]:
    """Positions (nm) of HEAVY_ATOMS at the given dihedrals (degrees); both peptide bonds are trans."""
    placed: list[np.ndarray] = []
    for _, name, bonded, angled, turned, length, angle, (fixed, n_phi, n_psi) in HEAVY_ATOMS:
        if len(placed) < 2:
            placed.append(np.array([length, 0.0, 0.0]))
            continue
        third = np.array([0.0, 0.1, 0.0]) if name == "O" and bonded == 1 else placed[turned]
        dihedral = np.radians(fixed + n_phi * phi + n_psi * psi)
        placed.append(_place(placed[bonded], placed[angled], third, length, np.radians(angle), dihedral))
    return np.array(placed)


def handedness(
    n: Float64[np.ndarray, "3"],
    ca: Float64[np.ndarray, "3"],
    c: Float64[np.ndarray, "3"],
    cb: Float64[np.ndarray, "3"],
) -> float:
    """(N-CA) × (C-CA) · (CB-CA), nm³: positive for an L residue, negative for its mirror image."""
    return float(np.dot(np.cross(n - ca, c - ca), cb - ca))


def _place(a: np.ndarray, b: np.ndarray, c: np.ndarray, length: float, angle: float, dihedral: float) -> np.ndarray:
    """The point at ``length`` from a, at ``angle`` to b, at ``dihedral`` about b-a against c."""
    along = (a - b) / np.linalg.norm(a - b)
    normal = np.cross(b - c, along)
    normal /= np.linalg.norm(normal)
    across = np.cross(normal, along)
    turn = np.cos(dihedral) * across + np.sin(dihedral) * normal
    return a + length * (np.sin(angle) * turn - np.cos(angle) * along)


def require_openmm(asked: str) -> Any:
    """OpenMM with what it is used for here; raises MissingExtra, which says what was ``asked``."""
    try:
        import openmm
        import openmm.app
        import openmm.unit
    except ImportError as error:
        raise MissingExtra(asked, "OpenMM is not installed", "run: pip install 'hpc-cg[openmm]'") from error
    return openmm


def _openmm() -> Any:
    return require_openmm("an all-atom archive made here")


def force_field() -> Any:
    """The force field of the archive that is made here: amber14 with OBC2 solvent; OpenMM must be there."""
    return _openmm().app.ForceField("amber14-all.xml", "implicit/obc2.xml")


def _molecule(start: tuple[float, float]) -> Any:
    """The 22 atoms at (phi, psi), as an openmm Modeller."""
    app, unit = _openmm().app, _openmm().unit
    positions = heavy_atoms(*start)
    topology = app.Topology()
    chain = topology.addChain()
    residues = {name: topology.addResidue(name, chain) for name in ("ACE", "ALA", "NME")}
    atoms: list[Any] = []
    for residue, name, bonded, *_ in HEAVY_ATOMS:
        atoms.append(topology.addAtom(name, app.Element.getBySymbol(name[0]), residues[residue]))
        if len(atoms) > 1:
            topology.addBond(atoms[bonded], atoms[-1])
    named = {(residue, name): positions[i] for i, (residue, name, *_) in enumerate(HEAVY_ATOMS)}
    sign = handedness(*(named["ALA", name] for name in ("N", "CA", "C", "CB")))
    assert sign > 0, "the residue that was built is not L"
    modeller = app.Modeller(topology, positions * unit.nanometer)
    # Hydrogens are first thrown at random places: fixed ones here, and the caller's generator left as it was.
    kept = random.getstate()
    random.seed(0)
    modeller.addHydrogens(force_field(), platform=_openmm().Platform.getPlatformByName("Reference"))
    random.setstate(kept)
    assert modeller.topology.getNumAtoms() == 22
    return modeller


def _simulation(molecule: Any, temperature_K: float, seed: int) -> Any:
    openmm = _openmm()
    app, unit = openmm.app, openmm.unit
    system = force_field().createSystem(
        molecule.topology,
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        hydrogenMass=HYDROGEN_MASS * unit.amu,
    )
    integrator = openmm.LangevinMiddleIntegrator(
        temperature_K * unit.kelvin, FRICTION_PER_PS / unit.picosecond, TIMESTEP_PS * unit.picosecond
    )
    integrator.setRandomNumberSeed(_openmm_seed(seed))
    platform = openmm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(molecule.topology, system, integrator, platform, {"Threads": "1"})
    simulation.context.setPositions(molecule.positions)
    return simulation


def _openmm_seed(seed: int) -> int:
    """A seed within OpenMM's 32 bits and never 0, which asks OpenMM for one of its own."""
    return seed % (2**31 - 2) + 1


def _frame(simulation: Any, steps: int) -> tuple[np.ndarray, np.ndarray, float]:
    unit = _openmm().unit
    simulation.step(steps)
    state = simulation.context.getState(positions=True, forces=True, energy=True)
    force_unit = unit.kilojoule_per_mole / unit.nanometer
    return (
        _positions(state),
        state.getForces(asNumpy=True).value_in_unit(force_unit),
        state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole),
    )


def _positions(state: Any) -> np.ndarray:
    """Positions in nm, centred in float64, so that float32 has all its bits for the molecule."""
    positions = state.getPositions(asNumpy=True).value_in_unit(_openmm().unit.nanometer)
    return positions - positions.mean(axis=0)


def _steps(frame_ps: float) -> int:
    steps = round(frame_ps / TIMESTEP_PS)
    if steps < 1 or not np.isclose(steps * TIMESTEP_PS, frame_ps, rtol=1e-6, atol=0):
        raise HpcCgError(
            "the time between frames", f"{frame_ps} ps", f"give a multiple of the time step, {TIMESTEP_PS} ps"
        )
    return steps


def _datasets(file: h5py.File, n_frames: int, n_atoms: int) -> tuple[Any, Any, Any]:
    whole, chunk = (n_frames, n_atoms, 3), (min(CHUNK_FRAMES, n_frames), n_atoms, 3)
    return (
        file.create_dataset("positions", whole, dtype="f4", chunks=chunk, compression="gzip"),
        file.create_dataset("forces", whole, dtype="f4", chunks=chunk, compression="gzip"),
        file.create_dataset("potential", (n_frames,), dtype="f8"),
    )


@contextmanager
def _atomic_h5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file written beside ``path`` and put in its place when the block ends well."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        try:
            with h5py.File(beside, "w") as file:
                yield file
            with beside.open("rb") as whole:
                os.fsync(whole.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        fsync_folder(path.parent)


@contextmanager
def _openmm_errors(asked: str) -> Iterator[None]:
    try:
        yield
    except _openmm().OpenMMException as error:
        raise BadFrames(asked, str(error), "try another seed, or a temperature nearer to 300 K") from error
