"""Amber NetCDF: what MDTraj and scipy write is read to the bit, in NetCDF-3 and NetCDF-4, with or without its tail."""

import warnings

import h5py
import numpy as np
import pytest
from formats import check_every_cut, check_ways_to_read, damaged, header_of, outcome, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import netcdf_file

from hpc_cg.archive import index, readers
from hpc_cg.archive.cells import box_vectors
from hpc_cg.archive.netcdf import NETCDF
from hpc_cg.errors import UnknownUnit, UnreadableFile

POSITIONS, FORCES = np.random.default_rng(6).normal(size=(2, 23, 11, 3)).astype(np.float32)
LENGTHS, ANGLES = np.full((23, 3), [30.0, 40.0, 50.0]), np.full((23, 3), [70.0, 80.0, 100.0])
TIME = (10 + 2 * np.arange(23)).astype(np.float32)
UNITS = {
    "coordinates": "angstrom",
    "forces": "kilocalorie/mole/angstrom",
    "time": "picosecond",
    "cell_lengths": "angstrom",
    "cell_angles": "degree",
    "temp0": "kelvin",
}
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, version=2, units=(), scale=(), records=True, **variables):
    """A trajectory as Amber's programs write it, in NetCDF-3."""
    n_frames = len(next(iter(variables.values())))
    units = UNITS | dict(units)
    with netcdf_file(path, "w", version=version) as file:
        file.Conventions, file.program = "AMBER", "sander"
        for name, length in (("frame", None if records else n_frames), ("atom", 11), ("spatial", 3)):
            file.createDimension(name, length)
        file.createVariable("spatial", "c", ("spatial",))[:] = [b"x", b"y", b"z"]
        for name, values in variables.items():
            dimensions = {1: ("frame",), 2: ("frame", "spatial"), 3: ("frame", "atom", "spatial")}[values.ndim]
            variable = file.createVariable(name, values.dtype.newbyteorder("="), dimensions)
            if units[name]:
                variable.units = units[name]
            if name in dict(scale):
                variable.scale_factor = dict(scale)[name]
            variable[:] = values
    return path


def everything(path, **kwargs):
    return write(
        path, coordinates=POSITIONS, forces=FORCES, time=TIME, cell_lengths=LENGTHS, cell_angles=ANGLES, **kwargs
    )


def test_what_mdtraj_writes_is_read_as_mdtraj_reads_it(tmp_path):
    with warnings.catch_warnings(action="ignore"):
        from mdtraj.formats import NetCDFTrajectoryFile

        with NetCDFTrajectoryFile(str(tmp_path / "a.nc"), "w") as file:
            file.write(POSITIONS, time=TIME, cell_lengths=LENGTHS, cell_angles=ANGLES)
        with NetCDFTrajectoryFile(str(tmp_path / "a.nc")) as file:
            np.testing.assert_array_equal(file.read()[0], POSITIONS)
    check_ways_to_read(NETCDF, tmp_path / "a.nc", POSITIONS)
    header = header_of(NETCDF, tmp_path / "a.nc")
    assert (header.n_atoms, header.n_frames, header.length_unit, header.force_unit) == (11, 23, "angstrom", None)
    assert header.step is None and header.temperature_K is None and not header.note
    np.testing.assert_array_equal(header.time, TIME)
    np.testing.assert_allclose(
        read(NETCDF, tmp_path / "a.nc", [3, 9]).cell, box_vectors(LENGTHS, ANGLES)[:2], rtol=1e-6
    )


@pytest.mark.parametrize("records", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_forces_and_positions_in_one_file(tmp_path, version, records):
    path = everything(tmp_path / "a.nc", version=version, records=records)
    check_ways_to_read(NETCDF, path, POSITIONS, FORCES)
    header = header_of(NETCDF, path)
    assert header.has_forces.all() and header.has_positions.all() and header.force_unit == "kcal/mol/angstrom"


def test_one_variable_alone(tmp_path):
    check_ways_to_read(NETCDF, write(tmp_path / "a.nc", coordinates=POSITIONS), POSITIONS)
    header = header_of(NETCDF, tmp_path / "a.nc")
    assert header.time is None and read(NETCDF, tmp_path / "a.nc", header.rows).cell is None


def test_double_precision_is_kept_and_centred_before_it_is_rounded(tmp_path):
    exact = np.random.default_rng(7).normal(size=(23, 11, 3))
    check_ways_to_read(NETCDF, write(tmp_path / "a.nc", coordinates=exact), exact)
    write(tmp_path / "b.nc", coordinates=exact + 1e4)
    (segment,) = index.scan(["b.nc"], tmp_path, molecule="m", stride_ps=1.0)
    wanted = 0.1 * (exact - exact.mean(1, keepdims=True))
    np.testing.assert_allclose(readers.read(segment, 0, 23).positions, wanted, atol=3e-7)


def test_a_file_of_forces_beside_one_of_positions_is_read_with_it(tmp_path):
    write(tmp_path / "a.nc", coordinates=POSITIONS, time=TIME)
    write(tmp_path / "a.mdfrc", forces=FORCES, time=TIME)
    header = header_of(NETCDF, tmp_path / "a.mdfrc")
    assert header.has_forces.all() and not header.has_positions.any() and header.length_unit is None
    (described,) = index.describe(tmp_path / "a.nc", molecule="m", forces_path=tmp_path / "a.mdfrc")
    frames = readers.read(described.segment, 0, 23, described.table)
    np.testing.assert_allclose(frames.positions, POSITIONS / 10, rtol=1e-6)
    np.testing.assert_allclose(frames.forces, FORCES * 41.84, rtol=1e-6)
    assert described.segment.stride_ps == 2.0


def test_units_are_those_of_the_file_and_unknown_ones_are_refused(tmp_path):
    path = everything(tmp_path / "a.nc", units={"coordinates": "nanometer", "cell_lengths": "nanometer", "time": "fs"})
    header = header_of(NETCDF, path)
    assert header.length_unit == "nm"
    np.testing.assert_allclose(header.time, TIME / 1000)
    for name in ("coordinates", "forces", "time"):
        with pytest.raises(UnknownUnit, match="bohr"):
            NETCDF.headers(everything(tmp_path / "b.nc", units={name: "bohr", "cell_lengths": ""}))
    for name in ("cell_lengths", "cell_angles"):
        with pytest.raises(UnreadableFile, match=f"{name} in radian"):
            NETCDF.headers(everything(tmp_path / "b.nc", units={name: "radian"}))
    header = header_of(NETCDF, everything(tmp_path / "c.nc", units=dict.fromkeys(UNITS, "")))
    assert (header.length_unit, header.force_unit) == ("angstrom", "kcal/mol/angstrom")


def test_scale_factors_are_honoured(tmp_path):
    path = everything(tmp_path / "a.nc", scale={"coordinates": np.float32(2), "forces": 0.5, "time": 4.0})
    check_ways_to_read(NETCDF, path, 2 * POSITIONS, FORCES / 2)
    np.testing.assert_array_equal(header_of(NETCDF, path).time, 4 * TIME)
    for wrong in (0.0, -1.0, np.nan):
        with pytest.raises(UnreadableFile, match="coordinates times"):
            NETCDF.headers(everything(tmp_path / "b.nc", scale={"coordinates": wrong}))


def test_one_temperature_is_that_of_the_file_and_several_are_refused(tmp_path):
    same = write(tmp_path / "a.nc", coordinates=POSITIONS, temp0=np.full(23, 310.0))
    assert header_of(NETCDF, same).temperature_K == 310.0
    unknown = write(tmp_path / "b.nc", coordinates=POSITIONS, temp0=np.zeros(23))
    assert header_of(NETCDF, unknown).temperature_K is None
    several = write(tmp_path / "c.nc", coordinates=POSITIONS, temp0=np.linspace(280, 350, 23))
    with pytest.raises(UnreadableFile, match="from 280 to 350 K"):
        NETCDF.headers(several)


def test_a_file_cut_anywhere_gives_whole_frames_or_an_error(tmp_path):
    path = write(tmp_path / "a.nc", coordinates=POSITIONS[:3], time=TIME[:3])
    content = path.read_bytes()
    check_every_cut(NETCDF, path, POSITIONS[:3])
    path.write_bytes(content[:-36])
    assert header_of(NETCDF, path).note == "the last frame is cut off: 100 of 136 bytes"
    path.write_bytes(content[:-172])
    note = "the last frame is cut off: 100 of 136 bytes; 1 frames are there, 3 as its header says"
    assert header_of(NETCDF, path).note == note


def test_records_that_are_not_counted_are_as_many_as_there_are(tmp_path):
    content = bytearray(everything(tmp_path / "a.nc").read_bytes())
    content[4:8] = b"\xff" * 4
    (tmp_path / "a.nc").write_bytes(content)
    check_ways_to_read(NETCDF, tmp_path / "a.nc", POSITIONS, FORCES)


def write_netcdf4(path, **kwargs):
    with h5py.File(path, "w") as file:
        for name, values in (("coordinates", POSITIONS), ("forces", FORCES), ("time", TIME), ("cell_lengths", LENGTHS)):
            file.create_dataset(name, data=values, chunks=(5, *values.shape[1:]), maxshape=(None, *values.shape[1:]))
            file[name].attrs["units"] = UNITS[name]
        file.create_dataset("cell_angles", data=ANGLES)
        for name, value in kwargs.items():
            file["coordinates"].attrs[name] = value
    return path


def test_netcdf4_is_read_too(tmp_path):
    path = write_netcdf4(tmp_path / "a.nc")
    check_ways_to_read(NETCDF, path, POSITIONS, FORCES)
    header = header_of(NETCDF, path)
    assert (header.length_unit, header.force_unit) == ("angstrom", "kcal/mol/angstrom")
    np.testing.assert_array_equal(header.time, TIME)
    np.testing.assert_allclose(read(NETCDF, path, [3, 9]).cell, box_vectors(LENGTHS, ANGLES)[:2])
    scaled = write_netcdf4(tmp_path / "b.nc", scale_factor=2.0)
    check_ways_to_read(NETCDF, scaled, 2 * POSITIONS, FORCES)
    with pytest.raises(UnreadableFile, match="plus 1"):
        NETCDF.headers(write_netcdf4(tmp_path / "c.nc", add_offset=1.0))


def test_netcdf4_cut_off_is_an_error(tmp_path):
    content = write_netcdf4(tmp_path / "a.nc").read_bytes()
    for length in range(0, len(content), 311):
        (tmp_path / "b.nc").write_bytes(content[:length])
        with pytest.raises(UnreadableFile, match=r"b\.nc"):
            NETCDF.headers(tmp_path / "b.nc")


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "an empty file"),
        (bytes(500), "neither NetCDF-3 nor NetCDF-4"),
        (b"CDF\x03" + bytes(500), "neither NetCDF-3 nor NetCDF-4"),
        (b"CDF\x01" + bytes(10), "a NetCDF header that is cut off"),
        (b"CDF\x02" + bytes(28), "neither coordinates nor forces"),
        (b"CDF\x01" + bytes(4) + b"\0\0\0\x0b" + bytes(100), "damaged|neither"),
        (b"CDF\x01" + bytes(4) + b"\0\0\0\x0a\x7f\xff\xff\xff" + bytes(4000), "cut off"),
    ],
)
def test_what_is_no_netcdf_is_said_with_the_name_of_the_file(tmp_path, content, said):
    (tmp_path / "a.nc").write_bytes(content)
    with pytest.raises(UnreadableFile, match=said) as caught:
        NETCDF.headers(tmp_path / "a.nc")
    assert "a.nc" in str(caught.value)


def test_shapes_that_differ_are_refused(tmp_path):
    with pytest.raises(UnreadableFile, match="coordinates of shape"):
        NETCDF.headers(write(tmp_path / "a.nc", coordinates=POSITIONS[:, 0]))
    with pytest.raises(UnreadableFile, match="time of shape"):
        NETCDF.headers(write(tmp_path / "b.nc", coordinates=POSITIONS, time=LENGTHS))


def test_frames_and_forces_that_are_not_there_are_errors(tmp_path):
    path = write(tmp_path / "a.nc", coordinates=POSITIONS)
    with pytest.raises(UnreadableFile, match="forces"):
        read(NETCDF, path, [0], forces=True)
    for row in (-1, 23):
        with pytest.raises(UnreadableFile, match="of 23"):
            read(NETCDF, path, [row])


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_gives_frames_or_an_error(tmp_path, changes):
    if not (tmp_path / "a.nc").exists():
        everything(tmp_path / "a.nc")
    (tmp_path / "b.nc").write_bytes(damaged((tmp_path / "a.nc").read_bytes(), changes))
    outcome(NETCDF, tmp_path / "b.nc")


@FUZZ
@given(content=st.binary(max_size=400), begun=st.sampled_from([0, 4, 8, 16, 40, 200, 400]))
def test_garbage_gives_an_error(tmp_path, content, begun):
    if not (tmp_path / "a.nc").exists():
        everything(tmp_path / "a.nc")
    (tmp_path / "b.nc").write_bytes((tmp_path / "a.nc").read_bytes()[:begun] + content)
    outcome(NETCDF, tmp_path / "b.nc")
