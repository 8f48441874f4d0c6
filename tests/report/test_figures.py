"""Claims about pictures: they open, they are the same for the same numbers, they name their axes."""

import io
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from hpc_cg.analysis.geometry import density
from hpc_cg.analysis.integration import PsiIntegration
from hpc_cg.analysis.landscape import ANGLE_GRID, histogram
from hpc_cg.analysis.marginals import Marginal
from hpc_cg.forcefield.histograms import Evidence
from hpc_cg.report import figures

RANDOM = np.random.default_rng(20)


def counts(shift: float = 0.0) -> np.ndarray:
    phi, psi = RANDOM.normal(-1.4 + shift, 0.4, 2000), RANDOM.normal(2.0, 0.5, 2000)
    return histogram(phi, psi, ANGLE_GRID)


def marginals(n: int, noised: bool) -> list[Marginal]:
    edges = np.linspace(0.12, 0.18, 31)
    drawn = [density(RANDOM.normal(0.15, 0.005, 500), edges) for _ in range(3)]
    return [Marginal(f"C{i}–N{i}", drawn[0], drawn[1], drawn[2] if noised else None) for i in range(n)]


def integration() -> PsiIntegration:
    psi = np.radians(np.arange(-17.5, 150, 5.0))
    wave, error = np.sin(psi), np.full(len(psi), 0.1)
    return PsiIntegration(-0.5, 0.4, -0.48, 0.09, psi, wave, error, wave, error, wave, 27.0)


def curve(n: int = 200) -> figures.LearningCurve:
    step = np.arange(n, dtype=float)
    falling = 4e4 + 6e4 * np.exp(-step / 30)
    return figures.LearningCurve("seed 0", step, falling, 1e-3 * (n - step) / n, step[::20], falling[::20], 4.1e4)


def evidence(lengths: np.ndarray) -> Evidence:
    counts, edges = np.histogram(lengths, 60, (0.1, 0.2))
    tried = (edges, np.exp(-((edges - 0.15) ** 2) / 2e-5)) if len(lengths) else None
    return Evidence("bond A-B", "bond length (nm)", edges, counts.astype(float), tried)


DRAWINGS = {
    "bonds": lambda: figures.bond_histograms(marginals(5, noised=True)),
    "one bond": lambda: figures.bond_histograms(marginals(1, noised=False)),
    "angles": lambda: figures.angle_histograms(marginals(9, noised=False)),
    "energies": lambda: figures.energy_histograms(marginals(1, noised=True)[0]),
    "learning": lambda: figures.learning_curves([curve()]),
    "seeds": lambda: figures.learning_curves([curve(), curve(100)]),
    "integration": lambda: figures.psi_integration(integration()),
    "two integrations": lambda: figures.psi_integration(integration(), integration()),
}
IMAGES = {
    "pair": lambda: figures.free_energy_pair(counts(), counts(0.2)),
    "noised": lambda: figures.free_energy_pair(counts(), counts(0.2), counts(0.1), limit_kT=6.0),
    "slow components": lambda: figures.slow_pair(counts(), counts(0.2), np.tile(np.linspace(-2.0, 3.0, 63), (2, 1))),
    "replicas": lambda: figures.replicas_over_time(np.arange(20.0), RANDOM.normal(size=(3, 20)), "energy (kJ/mol)"),
    "angles over time": lambda: figures.replicas_over_time(
        np.arange(20.0),
        90 * RANDOM.normal(size=(40, 20)),
        "ψ (degrees)",
        True,
        [figures.Stop(3, 4.0, "mirrored")],
    ),
    "failed fit": lambda: figures.failed_fit(evidence(RANDOM.normal(0.15, 0.003, 500))),
    "failed fit without frames": lambda: figures.failed_fit(evidence(np.zeros(0))),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_small_svg_that_fetch_nothing(name):
    image = DRAWINGS[name]()
    root = ElementTree.fromstring(image)
    assert root.tag.endswith("svg")
    assert len(image) < 300_000
    links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
    assert all(link.startswith("#") for link in links)


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_png_twice_as_wide_as_the_page_shows_them(name):
    image = IMAGES[name]()
    pixels = imread(io.BytesIO(image))
    assert pixels.shape[1] == pytest.approx(2 * 96 * figures.WIDTH, abs=2)
    assert pixels[..., :3].std() > 0.02


def test_the_same_numbers_give_the_same_bytes():
    assert figures.psi_integration(integration()) == figures.psi_integration(integration())
    surface = counts()
    assert figures.free_energy_pair(surface, surface) == figures.free_energy_pair(surface, surface)


def test_drawing_leaves_no_trace_in_matplotlib():
    before = dict(mpl.rcParams)
    figures.learning_curves([curve()])
    assert dict(mpl.rcParams) == before


def test_the_difference_of_free_energies_is_the_log_ratio():
    reference, model = np.zeros((5, 5)), np.zeros((5, 5))
    reference[1, 1], reference[2, 2] = 1, 3
    model[1, 1], model[3, 3] = 2, 2
    shift = figures.free_energy_shift(reference, model)
    assert shift[0, 0] == pytest.approx(np.log(0.25 / 0.5))
    assert np.isnan(shift).sum() == 8


@pytest.mark.parametrize("name", [*DRAWINGS, *IMAGES])
def test_every_axis_names_its_quantity_and_unit(name, monkeypatch):
    seen = []

    def keep(self, *args, **kwargs):
        seen.extend(self.get_axes())
        texts = [t.get_text() for t in (self._supxlabel, self._supylabel) if t is not None]
        seen.append(texts)

    monkeypatch.setattr(Figure, "savefig", keep)
    (DRAWINGS | IMAGES)[name]()
    shared = seen.pop()
    labels = [label for ax in seen for label in (ax.get_xlabel(), ax.get_ylabel()) if label] + shared
    assert len(labels) >= 2
    unitless = {"step", "replica", "learning rate"}
    assert all(label in unitless or "(" in label for label in labels), labels


def test_replicas_that_all_stopped_can_still_be_drawn():
    values = np.full((2, 5), np.nan)
    assert figures.replicas_over_time(np.arange(5.0), values, "energy (kJ/mol)").startswith(b"\x89PNG")


def test_one_saved_frame_is_enough_to_draw():
    assert figures.replicas_over_time(np.array([0.0]), np.ones((2, 1)), "energy (kJ/mol)")
