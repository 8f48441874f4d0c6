"""Which format a file is in: by the ending of its name, and HDF5, which many tools write, by what is inside.

A format's module is imported when the first file of that format is met, because listing files needs to be quick.
"""

from importlib import import_module
from pathlib import Path

from hpc_cg.archive.source import Format
from hpc_cg.errors import UnreadableFile

SUFFIXES = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".h5md": "hdf5",
    ".npy": "npy",
    ".npz": "npz",
    ".xtc": "xtc",
    ".trr": "trr",
    ".dcd": "dcd",
    ".nc": "netcdf",
    ".ncdf": "netcdf",
    ".mdfrc": "netcdf",
}
"""Family of formats by the ending of a file's name."""

FORCES_ALONE = (".mdfrc",)
"""Endings of files that hold forces only: not listed where a folder is searched for trajectories."""

FORCES_AS_POSITIONS = ("npy", "dcd")
"""Formats that do not say which of the two a file holds: one that is named as forces holds forces."""

_PLACES = {
    "h5": ("hdf5", "HDF5"),
    "h5md": ("h5md", "H5MD"),
    "mdcath": ("mdcath", "MDCATH"),
    "npy": ("arrays", "NPY"),
    "npz": ("arrays", "NPZ"),
    "xtc": ("xtc", "XTC"),
    "xtc-checked": ("xtc", "XTC_CHECKED"),
    "trr": ("trr", "TRR"),
    "dcd": ("dcd", "DCD"),
    "netcdf": ("netcdf", "NETCDF"),
}
"""Module and name of each format."""


def format_named(name: str) -> Format:
    """The format that a segment names."""
    module, constant = _PLACES[name]
    found = getattr(import_module(f"hpc_cg.archive.{module}"), constant)
    assert isinstance(found, Format)
    return found


def format_of(path: Path) -> Format:
    """The format of a file; raises UnreadableFile where its ending is not known, or its HDF5 layout."""
    family = SUFFIXES.get(path.suffix.lower())
    if family is None:
        raise UnreadableFile(f"reading {path}", f"no format known for {path.suffix!r}", f"give {', '.join(SUFFIXES)}")
    if family == "hdf5":
        from hpc_cg.archive.hdf5 import layout

        family = layout(path)
    return format_named(family)
