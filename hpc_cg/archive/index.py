"""What an archive holds, found without reading a coordinate.

A segment is one contiguous source trajectory. Describing opens a file for its headers only, so an archive of terabytes
is indexed in the time its headers take. Formats are listed in formats.py, what each offers in source.py.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from hpc_cg import files, units
from hpc_cg.archive import usable
from hpc_cg.archive.faults import explain_read_errors, unreadable
from hpc_cg.archive.formats import FORCES_AS_POSITIONS, format_of
from hpc_cg.archive.listing import COORDINATES, find, forces_beside
from hpc_cg.archive.listing import files_of as files_of
from hpc_cg.archive.source import Format, Header
from hpc_cg.errors import ChangedFile, TemperatureMismatch, UnknownUnit

MADE_UP_TIMES = ("dcd",)
"""Formats in which many tools write a time step that means nothing."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One contiguous source trajectory, as the index knows it.

    path            absolute; of the coordinates where forces lie in a file of their own
    format          name of the format (formats.format_named)
    n_frames        frames that can be used: those with positions and, where they were wanted, forces
    stride_ps       time between these frames, ps; their median where ``even`` is False
    temperature_K   as the source states it, None where it does not
    has_forces      whether forces were wanted and every frame counted has them
    digest          hash of the file, of both files where there are two, and of the place inside it
    length_unit     key of units.LENGTH in which the source is written
    force_unit      key of units.FORCE in which the source is written, None where there are no forces and none is known
    forces_path     absolute; None where the forces lie in ``path`` or nowhere
    inside          the trajectory's place within its file; empty where a file is one trajectory
    even            whether the frames are evenly spaced in time, to within 1 %
    counted         whether frame i is row i of each file, so that no table of rows is needed
    size, mtime_ns  bytes and time of last change when the file was described; of two files, their sums
    note            what is wrong with the source though it can be used
    """

    molecule: str
    path: str
    format: str
    n_frames: int
    n_atoms: int
    stride_ps: float
    temperature_K: float | None
    has_forces: bool
    digest: str
    length_unit: str
    force_unit: str | None
    forces_path: str | None
    inside: str = ""
    even: bool = True
    counted: bool = True
    size: int = 0
    mtime_ns: int = 0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Segment":
        return Segment(**fields)


@dataclass(frozen=True, eq=False)
class Described:
    """A segment, and where its frames are.

    table   for each frame the row of its positions and of its forces (source.Header.rows; -1 for no forces);
            None where segment.counted
    time    ps since the first frame; None where segment.even, so that frame i is at i * stride_ps
    """

    segment: Segment
    table: Int64[np.ndarray, "frame 2"] | None
    time: Float[np.ndarray, "frame"] | None = None


def scan(
    paths: Sequence[str],
    root: Path,
    *,
    molecule: str,
    want_forces: bool = True,
    length_unit: str | None = None,
    force_unit: str | None = None,
    stride_ps: float | None = None,
    temperature_K: float | None = None,
) -> tuple[Segment, ...]:
    """The segments that ``paths`` name (as in ``find``), sorted by path; arguments and errors as for ``describe``."""
    return tuple(
        described.segment
        for path in find(paths, root)
        for described in describe(
            path,
            molecule=molecule,
            want_forces=want_forces,
            length_unit=length_unit,
            force_unit=force_unit,
            stride_ps=stride_ps,
            temperature_K=temperature_K,
        )
    )


def describe(
    path: Path,
    *,
    molecule: str,
    want_forces: bool = True,
    forces_path: Path | None = None,
    length_unit: str | None = None,
    force_unit: str | None = None,
    stride_ps: float | None = None,
    temperature_K: float | None = None,
) -> tuple[Described, ...]:
    """The segments of one source file: one, or as many trajectories as it holds. Reads no coordinates.

    want_forces     whether frames without forces are of no use; where no frame has any, has_forces is False
    forces_path     the file that holds the forces of these frames, where that is another; of an npy pair it is known
    length_unit, force_unit   needed where neither format nor file states them
    stride_ps       time between frames, needed where the file does not keep it
    temperature_K   of the trajectories inside a file that holds several, those made at this temperature are taken;
                    a file that is one trajectory is described whatever its temperature
    Raises MissingInput where the file is gone or lacks its stride; UnreadableFile, which names the file, for one that
    is truncated, of another format or of another shape; UnknownUnit; TemperatureMismatch.
    """
    if length_unit:
        units.length_factor(length_unit)
    if force_unit:
        units.force_factor(force_unit)
    forces_path = (forces_path or forces_beside(path)) if want_forces else None
    sources = tuple(source for source in (path, forces_path) if source is not None)
    size, mtime_ns = _stamp(sources)
    form = format_of(path)
    if form.name == "npy" and not path.name.endswith(COORDINATES):
        raise unreadable(path, f"a name that does not end in {COORDINATES}")
    headers = _at_temperature(path, _headers(form, path), temperature_K)
    second = None if forces_path is None else (forces_path, format_of(forces_path))
    second_headers = None if second is None else _headers(second[1], second[0])
    digest = _digest(sources)
    found = []
    for header in headers:
        if second is None or second_headers is None:
            frames = usable.in_one_file(path, header, want_forces)
            stated_force_unit = header.force_unit
        else:
            forces = _of_same_place(second[0], second_headers, header.inside)
            as_positions = second[1].name in FORCES_AS_POSITIONS
            made_up = form.name in MADE_UP_TIMES, second[1].name in MADE_UP_TIMES
            frames = usable.in_two_files(path, header, second[0], forces, as_positions, made_up)
            stated_force_unit = forces.force_unit
        spacing = usable.spacing(path, frames, header.stride_ps, stride_ps, form.name not in MADE_UP_TIMES)
        stated_length_unit = _unit(path, "length", header.length_unit, length_unit)
        segment = Segment(
            molecule=molecule,
            path=str(path),
            format=form.name,
            n_frames=len(frames.rows),
            n_atoms=header.n_atoms,
            stride_ps=spacing.stride_ps,
            temperature_K=header.temperature_K,
            has_forces=frames.has_forces,
            digest=files.digest([digest, header.inside]) if header.inside else digest,
            length_unit=stated_length_unit,
            force_unit=_unit(path, "force", stated_force_unit, force_unit) if frames.has_forces else stated_force_unit,
            forces_path=None if forces_path is None else str(forces_path),
            inside=header.inside,
            even=spacing.even,
            counted=frames.counted,
            size=size,
            mtime_ns=mtime_ns,
            note="; ".join(note for note in (*frames.notes, spacing.note) if note),
        )
        time = None if spacing.even or frames.time is None else (frames.time - frames.time[0]).astype(np.float64)
        found.append(Described(segment, None if frames.counted else frames.rows, time))
    return tuple(found)


def check_unchanged(segment: Segment) -> None:
    """Raises ChangedFile where a source is not the one described any more, MissingInput where it is gone.

    One look at size and time of change; only where they differ is the digest taken again.
    """
    sources = tuple(Path(path) for path in (segment.path, segment.forces_path) if path is not None)
    if _stamp(sources) == (segment.size, segment.mtime_ns):
        return
    digest = _digest(sources)
    if segment.digest != (files.digest([digest, segment.inside]) if segment.inside else digest):
        raise ChangedFile(
            f"reading {' and '.join(map(str, sources))}",
            "another content than when it was indexed",
            "the file changed after the scan: run prepare again",
        )


def force_scale_warning(forces: Float[np.ndarray, "frame atom 3"]) -> str | None:
    """A sentence where forces in kJ/mol/nm are of a size that only a wrong unit explains; None where they may be right.

    At 300 K the root mean square per atom and axis is 670 to 930 kJ/mol/nm in alanine dipeptide, chignolin, a peptide
    in explicit solvent and flexible water, and 1,130 for mapped forces of backbone beads. Bonds of other stiffness,
    other temperatures and united atoms move it by a factor of two or so. Taking kcal for kJ (4.184) therefore overlaps
    with what is right and is not always seen; only what lies outside 150 to 3,000 is spoken of, which catches every
    confusion of nm and Angstrom (10) and of both at once (41.84).
    """
    rms = float(np.sqrt(np.nanmean(np.square(forces, dtype=np.float64)))) if forces.size else np.nan
    if not np.isfinite(rms) or USUAL_FORCES[0] <= rms <= USUAL_FORCES[1]:
        return None
    said = f"forces are {rms:.3g} kJ/mol/nm per atom and axis, where some {USUAL_FORCE:g} are usual"
    if rms == 0.0:
        return f"{said}: they are all zero"
    ratio = USUAL_FORCE / rms
    factor = min(CONFUSED, key=lambda known: abs(np.log(max(ratio, 1 / ratio) / known)))
    if not USUAL_FORCES[0] <= rms * (factor if ratio > 1 else 1 / factor) <= USUAL_FORCES[1]:
        return f"{said}: no unit known here explains that"
    true, declared = CONFUSED[factor] if ratio > 1 else CONFUSED[factor][::-1]
    size = "small" if ratio > 1 else "large"
    return f"{said}: {factor:g} times too {size}, as if numbers in {true} were declared as {declared}"


USUAL_FORCE = 800.0
USUAL_FORCES = (150.0, 3000.0)
"""Root mean square of atomic forces in kJ/mol/nm: what is common, and between what it may well be right."""

CONFUSED = {
    41.84: ("kcal/mol/angstrom", "kJ/mol/nm"),
    10.0: ("kJ/mol/angstrom", "kJ/mol/nm"),
    4.184: ("kcal/mol/angstrom", "kJ/mol/angstrom"),
}
"""Factor by which forces come out too small where the first unit is taken for the second."""


def _headers(form: Format, path: Path) -> tuple[Header, ...]:
    try:
        with explain_read_errors(path):
            headers = form.headers(path)
    except UnknownUnit as error:
        raise UnknownUnit(f"reading {path}", f"{error.asked} given as {error.found}", error.change) from error
    if not headers:
        raise unreadable(path, "no trajectory in it")
    return headers


def _at_temperature(path: Path, headers: tuple[Header, ...], temperature_K: float | None) -> tuple[Header, ...]:
    """Of several trajectories, those made at a temperature or at none that is known. Raises TemperatureMismatch."""
    if temperature_K is None or len(headers) == 1:
        return headers
    kept = tuple(h for h in headers if h.temperature_K is None or abs(h.temperature_K - temperature_K) <= 0.5)
    if not kept:
        made_at = sorted({h.temperature_K for h in headers if h.temperature_K is not None})
        raise TemperatureMismatch(
            f"trajectories at {temperature_K:g} K in {path}",
            f"only such at {', '.join(f'{temperature:g}' for temperature in made_at)} K",
            "set study.temperature_K to one of them, or choose other files",
        )
    return kept


def _of_same_place(path: Path, headers: tuple[Header, ...], inside: str) -> Header:
    same = [header for header in headers if header.inside == inside]
    if not same:
        raise unreadable(path, f"no trajectory at {inside or 'the top'!r}, where its positions lie in the other file")
    return same[0]


def _unit(path: Path, quantity: str, stated: str | None, asked: str | None) -> str:
    """The unit of a source: what it states, else what the study states; raises UnknownUnit where they differ."""
    if stated and asked and stated != asked:
        raise UnknownUnit(
            f"reading {path} in {asked}", f"the unit {stated} in the file", f"write {stated} in the study"
        )
    unit = stated or asked
    if not unit:
        known = units.LENGTH if quantity == "length" else units.FORCE
        raise UnknownUnit(
            f"the {quantity} unit of {path}",
            "none stated in the file or in the study",
            f"state prepare.{quantity}_unit, one of {', '.join(known)}",
        )
    return unit


def _stamp(sources: tuple[Path, ...]) -> tuple[int, int]:
    """Sizes and times of change, each summed: neither file can change unseen."""
    looked_at = []
    for source in sources:
        with explain_read_errors(source):
            looked_at.append(source.stat())
    return sum(found.st_size for found in looked_at), sum(found.st_mtime_ns for found in looked_at)


def _digest(sources: tuple[Path, ...]) -> str:
    parts = []
    for source in sources:
        with explain_read_errors(source):
            parts.append(files.digest_file(source))
    return parts[0] if len(parts) == 1 else files.digest(parts)
