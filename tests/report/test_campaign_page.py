"""Claims about a campaign's page: means and spreads over repeats, lines named by what differs, failures listed."""

import numpy as np
import pytest

from hpc_cg.report import campaign_figures as figures
from hpc_cg.report.campaign import Group, content, frames_at, pareto_front
from hpc_cg.report.page import render

NAME = "excess force error"


def group(labels: tuple[str, ...], n_frames: int, *values: float) -> Group:
    return Group(labels, n_frames, {NAME: values}, {NAME: "kJ/mol/nm"}, 10, 1, 2)


GROUPS = (
    group(("forces", "100 %"), 4000, 11.0, 13.0),
    group(("forces", "10 %"), 400, 30.0, 34.0),
    group(("noise", "100 %"), 4000, 20.0),
    group(("noise", "10 %"), 400, 50.0, 52.0),
)


def test_a_group_gives_the_mean_and_the_spread_of_single_models() -> None:
    assert GROUPS[0].mean(NAME) == 12.0
    assert GROUPS[0].spread(NAME) == pytest.approx(np.sqrt(2))
    assert GROUPS[2].spread(NAME) is None


def test_the_page_has_every_group_and_names_what_is_missing() -> None:
    page = render(content("forces or noise", ("labels", "data"), GROUPS, {"noise_10_3": "train: no frames"}, {}))
    for word in ("12.0 ± 1.4", "32.0 ± 2.8", "noise_10_3", "train: no frames", "4,000", "(kJ/mol/nm)"):
        assert word in page


def test_a_page_of_nothing_but_failures_is_a_page() -> None:
    page = render(content("all failed", ("labels",), (), {"a": "prepare: no archive"}, {}))
    assert "no archive" in page


def line(label: str, n: int) -> figures.Line:
    return figures.Line(label, np.geomspace(100, 10000, n), np.linspace(1, 2, n), np.full(n, 0.1))


@pytest.mark.parametrize("by_size", [True, False])
def test_the_picture_names_its_lines_and_is_the_same_again(by_size: bool) -> None:
    panels = [figures.Panel("JS divergence", (line("forces", 3), line("noise", 3)), True)]
    image = figures.lines_over_frames(panels, by_size)
    assert image == figures.lines_over_frames(panels, by_size)
    assert image.startswith(b"<?xml") and b"JS divergence" in image and b"noise" in image


def test_frames_needed_for_an_error_follow_a_power_law() -> None:
    frames = np.array([100.0, 1000.0, 10000.0])
    assert frames_at(frames, 50.0 * (100.0 / frames) ** 0.5, 10.0) == pytest.approx(2500.0)


@pytest.mark.parametrize("error", [60.0, 4.0])
def test_frames_needed_are_not_guessed_beyond_the_sizes_tried(error: float) -> None:
    assert frames_at(np.array([100.0, 1000.0, 10000.0]), np.array([50.0, 16.0, 5.0]), error) is None


def test_the_page_says_how_many_frames_the_other_labels_need() -> None:
    page = render(content("forces or noise", ("labels", "data"), GROUPS, {}, {}))
    assert "Frames needed" in page
    assert "more than 4,000" in page  # noise never has the error of forces on all frames: 12
    needed = 400 * (51 / 32) ** (np.log(10) / np.log(51 / 20))
    assert f"{needed:,.0f} ({400 / needed:.2f} ×)" in page


def both(labels: tuple[str, ...], n_frames: int, bond_nm: float, pmf: float) -> Group:
    values = {"bond error, clean reference": (bond_nm,), "PMF error, clean reference": (pmf,)}
    units = {"bond error, clean reference": "nm", "PMF error, clean reference": "kT"}
    return Group(labels, n_frames, values, units, 10, 0, 3)


def test_the_page_says_which_models_no_other_beats_in_both_errors() -> None:
    groups = (both(("forces",), 400, 1e-4, 1.0), both(("noise",), 400, 4e-3, 0.5), both(("worse",), 400, 5e-3, 0.6))
    page = render(content("kernels", ("labels",), groups, {}, {}))
    assert ">forces, noise</td>" in page and "9 of 30" in page


def test_a_front_holds_what_nothing_dominates() -> None:
    errors = np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 2.5], [3.0, 1.0], [3.0, 3.0], [2.0, 2.0]])
    assert pareto_front(errors).tolist() == [0, 1, 3, 5]  # of two alike both


def test_errors_are_drawn_the_same_again() -> None:
    points = tuple(figures.Point(f"kind {i}", 1e-3 * (i + 1), 1 / (i + 1), 1e-4, 0.1) for i in range(13))
    clouds = [figures.Cloud(f"{n} frames", points, (0, 12)) for n in (400, 4000, 40000)]
    image = figures.errors_together(clouds, "bond error (nm)", "PMF error (kT)")
    assert image == figures.errors_together(clouds, "bond error (nm)", "PMF error (kT)")
    assert b"Pareto front" in image and b"kind 12" in image and b"bond error (nm)" in image
