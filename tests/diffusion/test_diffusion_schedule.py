"""Levels of noise: the published ones, and what width of noise they stand for."""

import numpy as np
import pytest

from hpc_cg.diffusion.presets import PRESETS
from hpc_cg.diffusion.schedule import CosineSchedule
from hpc_cg.errors import UnfitLevel

SCALES_NM = {
    "alanine-dipeptide": 0.0945,
    "chignolin": 0.3113,
    "trp-cage": 0.5082,
    "bba": 0.6295,
    "villin": 0.6083,
    "protein-g": 0.6354,
}
PUBLISHED = {
    5: (3.21e-4, (0.017, 0.056, 0.091, 0.113, 0.109, 0.114)),
    8: (5.46e-4, (0.022, 0.073, 0.119, 0.147, 0.142, 0.149)),
    10: (7.21e-4, (0.025, 0.084, 0.137, 0.169, 0.163, 0.171)),
    15: (1.24e-3, (0.033, 0.110, 0.179, 0.222, 0.215, 0.224)),
    20: (1.89e-3, (0.041, 0.135, 0.221, 0.274, 0.264, 0.276)),
}
"""1 − ᾱ_t, and σ_t in Angstrom of each molecule."""


@pytest.mark.parametrize("level", PUBLISHED)
def test_levels_stand_for_the_published_widths(level: int) -> None:
    schedule, (noise, widths) = CosineSchedule(), PUBLISHED[level]
    assert schedule.noise[level] == pytest.approx(noise, rel=3e-3)
    found = [10 * schedule.sigma_nm(level, scale) for scale in SCALES_NM.values()]
    assert found == pytest.approx(widths, abs=0.6e-3)


def test_published_models_are_read_off_at_little_noise() -> None:
    widths = {name: 10 * CosineSchedule().sigma_nm(PRESETS[name].level, scale) for name, scale in SCALES_NM.items()}
    expected = {"alanine-dipeptide": 0.022, "chignolin": 0.135, "trp-cage": 0.179, "bba": 0.113}
    expected |= {"villin": 0.109, "protein-g": 0.114}
    assert widths == pytest.approx(expected, abs=0.6e-3)


def test_noise_grows_from_next_to_nothing_to_everything() -> None:
    schedule = CosineSchedule()
    assert (np.diff(schedule.widths) > 0).all()
    np.testing.assert_allclose(schedule.signal + schedule.noise, 1, rtol=1e-14)
    np.testing.assert_allclose(schedule.signal, np.cumprod(1 - schedule.betas), rtol=1e-12)
    assert schedule.noise[0] < 1e-4 and schedule.signal[-1] < 1e-7 and schedule.betas.max() == 0.999


def test_the_level_of_a_width_is_the_nearest_one() -> None:
    schedule = CosineSchedule()
    assert [schedule.level_of(schedule.sigma_nm(level, 0.3), 0.3) for level in (0, 8, 500, 999)] == [0, 8, 500, 999]
    assert schedule.level_of(0.49 * schedule.sigma_nm(8, 0.3) + 0.51 * schedule.sigma_nm(9, 0.3), 0.3) == 9


@pytest.mark.parametrize("level", [-1, 1000])
def test_a_level_that_is_not_there_is_refused(level: int) -> None:
    with pytest.raises(UnfitLevel, match=f"noise level {level}: found a schedule with levels 0 to 999"):
        CosineSchedule().sigma_nm(level, 0.1)


@pytest.mark.parametrize("sigma_nm", [0.0, -0.1, 1e-5, 1e6, float("nan")])
def test_a_width_between_no_levels_is_refused(sigma_nm: float) -> None:
    with pytest.raises(UnfitLevel, match="choose a width between these|Choose a width between these"):
        CosineSchedule().level_of(sigma_nm, 0.1)
