"""mdCATH: thousands of protein domains, each a file with 25 trajectories of positions and forces.

    /<domain>/<temperature>/<replica>/   `coords` (frame atom 3) in Angstrom, `forces` in kcal/mol/Angstrom, `box` (3 3)
                                         in nm; a frame every nanosecond
    /<domain>/pdbProteinAtoms            the atoms, as PDB text

A. Mirarchi, T. Giorgino, G. De Fabritiis, mdCATH: A large-scale MD dataset for data-driven computational biophysics,
Sci. Data 11, 1299 (2024), https://arxiv.org/abs/2407.14794.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float

from hpc_cg import units
from hpc_cg.archive import h5file
from hpc_cg.archive.faults import explain_read_errors, unreadable
from hpc_cg.archive.parts import joined
from hpc_cg.archive.source import Format, Header, Read

STRIDE_PS = 1000.0
LENGTH_UNIT, FORCE_UNIT, BOX_UNIT = "angstrom", "kcal/mol/angstrom", "nm"
TOPOLOGY = "pdbProteinAtoms"


def trajectories(path: Path, file: h5py.File) -> Iterator[str]:
    """The places of trajectories, domain/temperature/replica, in order of numbers. Raises UnreadableFile."""
    for domain in h5file.names(file):
        top = h5file.group(path, file, domain)
        for temperature in _numbered(top):
            middle = None if top is None else h5file.group(path, top, temperature)
            for replica in _numbered(middle):
                place = None if middle is None else h5file.group(path, middle, replica)
                if place is not None and h5file.has(place, "coords"):
                    yield f"{domain}/{temperature}/{replica}"


def headers(path: Path) -> tuple[Header, ...]:
    """A header for each trajectory, in order. Raises UnreadableFile, UnknownUnit."""
    with h5file.opened(path) as file, explain_read_errors(path):
        return tuple(_header(path, file, place) for place in trajectories(path, file))


@contextmanager
def opened(path: Path, inside: str) -> Iterator[Read]:
    """One trajectory, ready to be read. Raises UnreadableFile."""
    with h5file.opened(path) as file:
        with explain_read_errors(path):
            place = h5file.group(path, file, inside)
            coords = None if place is None else h5file.frames(path, place, "coords")
            if place is None or coords is None:
                raise unreadable(path, f"no trajectory at {inside!r}")
            forces = h5file.dataset(path, place, "forces")
            box = _box(path, place)

        yield joined(
            path,
            partial(h5file.read_rows, coords),
            None if forces is None else partial(h5file.read_rows, forces),
            None if box is None else lambda rows: np.repeat(box[None], len(rows), axis=0),
        )


MDCATH = Format("mdcath", headers, opened)


def topology_text(path: Path) -> str | None:
    """The PDB text of the atoms of the first domain that has one; None where the file has none.

    Raises UnreadableFile for a file that is no HDF5.
    """
    with h5file.opened(path) as file, explain_read_errors(path):
        for domain in h5file.names(file):
            top = h5file.group(path, file, domain)
            found = None if top is None else h5file.dataset(path, top, TOPOLOGY)
            if found is not None:
                return h5file.document(found)
    return None


def _header(path: Path, file: h5py.File, inside: str) -> Header:
    place = h5file.group(path, file, inside)
    coords = None if place is None else h5file.frames(path, place, "coords")
    if place is None or coords is None:
        raise unreadable(path, f"no dataset 'coords' in {inside}")
    n_frames, n_atoms = coords.shape[:2]
    forces = h5file.frames(path, place, "forces", n_atoms)
    if forces is not None and len(forces) != n_frames:
        raise unreadable(path, f"{n_frames} frames of coords and {len(forces)} of forces in {inside}")
    return Header(
        n_atoms=n_atoms,
        rows=np.arange(n_frames),
        has_positions=np.ones(n_frames, bool),
        has_forces=np.full(n_frames, forces is not None),
        stride_ps=STRIDE_PS,
        temperature_K=float(inside.split("/")[1]),
        length_unit=units.length_named(_stated(coords, LENGTH_UNIT)),
        force_unit=units.force_named(_stated(forces, FORCE_UNIT)),
        inside=inside,
    )


def _numbered(place: h5py.Group | None) -> list[str]:
    """Names that are numbers, in their order; none where there is no group."""
    names = () if place is None else h5file.names(place)
    return sorted((name for name in names if name.isascii() and name.isdecimal()), key=int)


def _stated(found: h5py.Dataset | None, usual: str) -> str:
    unit = None if found is None else h5file.text(found, "unit")
    return usual if unit is None else unit


def _box(path: Path, place: h5py.Group) -> Float[np.ndarray, "3 3"] | None:
    """Cell vectors in the unit of the coordinates; None where the file has none. Raises UnreadableFile."""
    box = h5file.dataset(path, place, "box")
    if box is None:
        return None
    if box.shape not in ((3,), (3, 3)) or box.dtype.kind != "f":
        raise unreadable(path, f"{box.name} of shape {box.shape}, not (3, 3)")
    vectors = np.diag(box[:]) if box.shape == (3,) else box[:]
    unit, of_coords = (
        units.length_named(text) for text in (_stated(box, BOX_UNIT), _stated(place["coords"], LENGTH_UNIT))
    )
    return vectors.astype(np.float64) * (units.LENGTH[unit] / units.LENGTH[of_coords])
