"""What a coarse-grained molecule is made of: bead types, masses, and the bonded terms that follow from its bonds.

Angles are all pairs of bonds that share a bead; dihedrals all chains of three bonds; chiral centres are given by the
map, which knows the atoms. Indices count beads from 0.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations


@dataclass(frozen=True)
class BeadSystem:
    """The beads of one molecule.

    names        label of each bead, e.g. "ALA2:CA"
    types        integer type of each bead; beads of one type share parameters
    masses       u
    bonds        pairs (i, j), i < j
    angles       triples (i, centre, k), i < k
    dihedrals    quadruples (i, j, k, l) along bonds, j < k
    impropers    quadruples (centre, a, b, c): chiral centres whose handedness the force field must keep
    """

    names: tuple[str, ...]
    types: tuple[int, ...]
    masses: tuple[float, ...]
    bonds: tuple[tuple[int, int], ...]
    angles: tuple[tuple[int, int, int], ...]
    dihedrals: tuple[tuple[int, int, int, int], ...]
    impropers: tuple[tuple[int, int, int, int], ...]

    @property
    def n_beads(self) -> int:
        return len(self.types)

    @cached_property
    def digest(self) -> str:
        """Short hash of everything above."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def index(self, name: str) -> int:
        """Position of the bead called ``name`` (the part after the colon is enough where it is unique)."""
        hits = [i for i, known in enumerate(self.names) if name in (known, known.partition(":")[2])]
        assert len(hits) == 1, f"bead {name!r} names {len(hits)} of {self.names}"
        return hits[0]

    def to_json(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict) -> "BeadSystem":
        def tuples(rows: Iterable) -> tuple:
            return tuple(tuple(row) if isinstance(row, (list, tuple)) else row for row in rows)

        return BeadSystem(**{name: tuples(rows) for name, rows in fields.items()})


def bead_system(
    names: Iterable[str],
    types: Iterable[int],
    masses: Iterable[float],
    bonds: Iterable[tuple[int, int]],
    impropers: Iterable[tuple[int, int, int, int]] = (),
) -> BeadSystem:
    """The bead system of given beads and bonds, with angles and dihedrals derived from the bonds."""
    pairs = sorted({(min(b), max(b)) for b in bonds})
    neighbours: dict[int, list[int]] = {}
    for i, j in pairs:
        neighbours.setdefault(i, []).append(j)
        neighbours.setdefault(j, []).append(i)
    angles = [(a, centre, c) for centre in neighbours for a, c in combinations(sorted(neighbours[centre]), 2)]
    dihedrals = [
        (i, j, k, m)
        for j, k in pairs
        for i in sorted(neighbours[j])
        for m in sorted(neighbours[k])
        if i != k and m != j and i != m
    ]
    return BeadSystem(
        names=tuple(names),
        types=tuple(int(t) for t in types),
        masses=tuple(float(m) for m in masses),
        bonds=tuple(pairs),
        angles=tuple(sorted(angles)),
        dihedrals=tuple(sorted(dihedrals)),
        impropers=tuple(tuple(int(i) for i in quad) for quad in impropers),  # type: ignore[misc]
    )
