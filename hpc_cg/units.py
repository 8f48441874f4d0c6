"""The units of this project, and the factors by which others are brought into them, once.

Inside: nm, ps, u, kJ/mol, K. One u·nm²/ps² is one kJ/mol, so no equation of motion carries a factor.
Constants follow CODATA 2018 (exact in the 2019 SI).
"""

from hpc_cg.errors import UnknownUnit

BOLTZMANN = 8.31446261815324e-3
"""Boltzmann constant times Avogadro's, kJ/mol/K."""

KCAL = 4.184
"""kJ/mol in one kcal/mol."""

ANGSTROM = 0.1
"""nm in one Angstrom."""

LENGTH = {"nm": 1.0, "angstrom": ANGSTROM}
"""Length units a source may declare, in nm."""

FORCE = {"kJ/mol/nm": 1.0, "kJ/mol/angstrom": 1 / ANGSTROM, "kcal/mol/angstrom": KCAL / ANGSTROM}
"""Force units a source may declare, in kJ/mol/nm."""


def kT(temperature_K: float) -> float:  # noqa: N802 - the field writes kT
    """Thermal energy in kJ/mol."""
    return BOLTZMANN * temperature_K


def length_factor(unit: str) -> float:
    """Nanometres in one ``unit``; raises UnknownUnit."""
    return _factor(unit, LENGTH, "length")


def force_factor(unit: str) -> float:
    """kJ/mol/nm in one ``unit``; raises UnknownUnit."""
    return _factor(unit, FORCE, "force")


def _factor(unit: str, known: dict[str, float], quantity: str) -> float:
    if unit not in known:
        raise UnknownUnit(f"the {quantity} unit of a source", f"{unit!r}", f"use one of {', '.join(known)}")
    return known[unit]
