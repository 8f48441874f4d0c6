"""The units of this project, and the factors by which others are brought into them, once.

Inside: nm, ps, u, kJ/mol, K. One u·nm²/ps² is one kJ/mol, so no equation of motion carries a factor.
Constants follow CODATA 2018 (exact in the 2019 SI).
"""

import re

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

TIME = {"ps": 1.0, "fs": 1e-3, "ns": 1e3}
"""Time units that a file may state, in ps."""

_WORDS = {
    "nm": ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    "angstrom": ("angstrom", "angstroms", "ang", "a", "å", "ångström"),
    "kJ": ("kj", "kilojoule", "kilojoules"),
    "kcal": ("kcal", "kilocalorie", "kilocalories"),
    "mol": ("mol", "mole"),
    "ps": ("ps", "picosecond", "picoseconds"),
    "fs": ("fs", "femtosecond", "femtoseconds"),
    "ns": ("ns", "nanosecond", "nanoseconds"),
}
_MEANING = {word: meaning for meaning, words in _WORDS.items() for word in words}


def kT(temperature_K: float) -> float:  # noqa: N802 - the field writes kT
    """Thermal energy in kJ/mol."""
    return BOLTZMANN * temperature_K


def length_factor(unit: str) -> float:
    """Nanometres in one ``unit``; raises UnknownUnit."""
    return _factor(unit, LENGTH, "length")


def force_factor(unit: str) -> float:
    """kJ/mol/nm in one ``unit``; raises UnknownUnit."""
    return _factor(unit, FORCE, "force")


def length_named(text: str) -> str:
    """The key of LENGTH that a file means, as in ``nanometers``; raises UnknownUnit."""
    return _named(text, [text.strip()], LENGTH, "length")


def time_named(text: str) -> str:
    """The key of TIME that a file means, as in ``picoseconds``; raises UnknownUnit."""
    return _named(text, [text.strip()], TIME, "time")


def force_named(text: str) -> str:
    """The key of FORCE that a file means, as in ``kJ mol-1 nm-1``; raises UnknownUnit.

    An energy divided by mol and by a length, in any order of the two, as in ``kilojoule/(nanometer*mole)``.
    """
    numerator, _, rest = text.replace("^", "").replace("-1", "").strip().partition("/" if "/" in text else " ")
    return _named(text, [numerator, *sorted(re.split(r"[\s/*()·]+", rest), key=_after_mol)], FORCE, "force")


def _after_mol(word: str) -> bool:
    return _MEANING.get(word.lower()) != "mol"


def _named(text: str, words: list[str], known: dict[str, float], quantity: str) -> str:
    key = "/".join(_MEANING.get(word.lower(), word) for word in words if word)
    _factor(key, known, quantity)
    return key


def _factor(unit: str, known: dict[str, float], quantity: str) -> float:
    if unit not in known:
        raise UnknownUnit(f"the {quantity} unit of a source", f"{unit!r}", f"use one of {', '.join(known)}")
    return known[unit]
