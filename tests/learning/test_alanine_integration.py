"""On real data: the force along ψ, integrated, tells right labels from wrong and a trained network from its priors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_cg.analysis.integration import PsiIntegration, psi_integration
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.schnet import SchNetConfig
from hpc_cg.learning.distributed import World
from hpc_cg.learning.labels import Labels, open_labels
from hpc_cg.learning.loop import Trainer
from hpc_cg.learning.mixture import Member
from hpc_cg.learning.resident import Resident
from hpc_cg.learning.settings import Settings
from hpc_cg.stages.study import read_study
from hpc_cg.store.dataset import split
from hpc_cg.store.layout import StoreSpec
from jobs.run import run_stage

pytestmark = [pytest.mark.data, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def labelled(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, StoreSpec]:
    """Mapped forces of alanine dipeptide, 60,000 frames."""
    folder = tmp_path_factory.mktemp("alanine")
    path = folder / "study.toml"
    path.write_text(
        f'[study]\nname = "a"\ntemperature_K = 300.0\n[prepare]\nmolecule = "ala"\n'
        f'archive = ["{data_folder}/ala2_all_atom"]\ntopology = "{data_folder}/ala2_all_atom/topology.pdb"\n'
    )
    study = read_study(path)
    run_stage(study, "prepare")
    run_stage(study, "kernel")
    return open_labels(study.folder("prepare"), study.folder("kernel"), "ala", seed=1)


def deviation(found: PsiIntegration) -> tuple[float, float]:
    """Largest distance of the integrated free energy from the histogram's, in kT and in standard errors."""
    apart = np.abs(found.free_energy - found.histogram)[1:]
    return float(apart.max()), float((apart / np.maximum(found.free_energy_error[1:], 1e-9)).max())


def integrate(labelled: tuple[Labels, StoreSpec], forces: np.ndarray) -> PsiIntegration:
    labels, spec = labelled
    return psi_integration(labels.frames.positions, forces, spec.system, spec.temperature_K)


def test_right_labels_integrate_to_the_histogram_and_wrong_ones_do_not(labelled: tuple[Labels, StoreSpec]) -> None:
    forces = labelled[0].frames.forces
    assert forces is not None
    apart, errors = deviation(integrate(labelled, forces))
    assert apart < 1.2 and errors < 4
    for factor in (0.0, 0.5, 2.0, -1.0):
        assert deviation(integrate(labelled, factor * forces))[0] > 1.3
    swapped = forces[:, [0, 1, 2, 3, 5, 4]]
    assert deviation(integrate(labelled, swapped))[0] > 1.3


def test_a_trained_network_integrates_to_the_histogram_and_its_priors_alone_do_not(
    labelled: tuple[Labels, StoreSpec], tmp_path: Path
) -> None:
    labels, spec = labelled
    train, held = split(labels.frames, spec.held_out)
    priors = fit_priors(CoordinateMoments.of(labels.frames.positions[train], spec.system), spec.temperature_K)
    forcefield = ForceField(spec.system, priors, SchNetConfig(n_rbf=64), seed=1)
    settings = Settings(900, 128, 2e-3, 1e-5, 20, 0.0, 10.0, 900, 900, 1)
    feed = Resident(labels, train, held[::4], 1, 128, World(0, 1), torch.device("cpu"))
    trainer = Trainer([Member("alanine", forcefield, feed, 1)], settings, World(0, 1), tmp_path)
    outcome = trainer.run(lambda step, note: None, lambda: False, forcefield.describe())
    assert outcome.validation.explained_delta > 0.14
    parts = torch.from_numpy(labels.frames.positions).split(2048)
    with torch.no_grad():
        prior = np.concatenate([forcefield.prior(part).forces.numpy() for part in parts])
        network = np.concatenate([forcefield(part).forces.numpy() for part in parts])
    alone, trained = (deviation(integrate(labelled, forces))[0] for forces in (prior, network))
    assert alone > 2.5
    assert trained < 0.6 * alone
