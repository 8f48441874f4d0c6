"""What the members of a campaign found, as figures with their spread over repeats, and the page that shows them.

The force error of a model is its labels' noise for the most part. What differs between models is the excess,

    < (F_model - F_best)^2 >^(1/2)   on the held-out frames, displaced by the same noise,

over the best known model of the same density: the mean of those trained on the most frames, with forces where there are
any. A model of that group is compared with the mean of the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_cg.campaign.members import Campaign
from hpc_cg.files import read_json, write_json
from hpc_cg.stages.kernel import WITHOUT_FORCES
from hpc_cg.stages.product import State, read_seal
from hpc_cg.stages.study import Study

if TYPE_CHECKING:
    from hpc_cg.report.campaign import Group

PAGE, FINDINGS = "campaign.html", "findings.json"
EXCESS_FRAMES, EXCESS_BATCH = 4096, 1024

EXCESS = "excess force error"
ESTIMATES = {
    ("JS divergence φ, ψ", "clean"): "JS divergence, clean reference",
    ("JS divergence φ, ψ", "noised"): "JS divergence, noised reference",
    ("JS divergence φ, ψ, α weight matched", "clean"): "JS divergence, α weight matched",
    ("free-energy error φ, ψ, root", "clean"): "PMF error, clean reference",
    ("free-energy error φ, ψ, root", "noised"): "PMF error, noised reference",
    ("basin offset (α against the rest)", "clean"): "α basin offset",
    ("bond length, mean Wasserstein distance", "clean"): "bond error, clean reference",
    ("bond length, mean Wasserstein distance", "noised"): "bond error, noised reference",
    ("backmapped energy, shift of the mean", "clean"): "backmapped energy, shift, clean reference",
    ("backmapped energy, shift of the mean", "noised"): "backmapped energy, shift, noised reference",
    ("backmapped energy, Wasserstein distance", "clean"): "backmapped energy, distance, clean reference",
    ("backmapped energy, Wasserstein distance", "noised"): "backmapped energy, distance, noised reference",
    ("JS divergence of slow components", "clean"): "JS divergence of slow components",
    ("time of the reference over time of the model, process 1", "clean"): "slowest timescale, reference over model",
    ("replica time lost, mirrored", "clean"): "replica time lost, mirrored",
    ("replica time lost, diverged", "clean"): "replica time lost, diverged",
}
"""(label, against) of an estimate of a study, and what the campaign calls it."""

UNITS = {
    EXCESS: "kJ/mol/nm",
    "α offset by integration of the network's forces": "kT",
    "α basin offset": "kT",
    "PMF error, clean reference": "kT",
    "PMF error, noised reference": "kT",
    "bond error, clean reference": "nm",
    "bond error, noised reference": "nm",
    "backmapped energy, shift, clean reference": "kT",
    "backmapped energy, shift, noised reference": "kT",
    "backmapped energy, distance, clean reference": "kJ/mol",
    "backmapped energy, distance, noised reference": "kJ/mol",
    "explained of the delta forces": "",
}


@dataclass(frozen=True)
class Failure:
    """A member that could not be brought to its end: the stage, what it said, and the log, if there is one."""

    member: str
    stage: str
    message: str
    log: str


def write_campaign_page(campaign: Campaign, studies: Sequence[Study], failures: Sequence[Failure]) -> Path:
    """Gather the figures of all members that are done and write ``findings.json`` and the page; returns its path."""
    from hpc_cg.report.campaign import content
    from hpc_cg.report.page import write_page

    groups = gather(campaign, studies)
    write_json(campaign.folder / FINDINGS, [_as_json(group) for group in groups])
    page = campaign.folder / PAGE
    missing = [one.path.stem for one in studies if one.state("aggregate") != State.SEALED]
    failed = {one.member: f"{one.stage}: {one.message}{f' (log: {one.log})' if one.log else ''}" for one in failures}
    write_page(
        page,
        content(
            campaign.config.name,
            tuple(axis.name for axis in campaign.axes if axis.name != campaign.config.repeats),
            groups,
            {name: failed.get(name, "not run to its end") for name in missing},
            {str(campaign.path): {one.path.stem: one.digest for one in studies if one.path.exists()}},
        ),
    )
    return page


def gather(campaign: Campaign, studies: Sequence[Study]) -> "tuple[Group, ...]":
    """The figures of each group that has members that are done."""
    from hpc_cg.report.campaign import Group

    ready = [
        (campaign.group(member), study)
        for member, study in zip(campaign.members, studies, strict=True)
        if study.state("aggregate") == State.SEALED
    ]
    excess = excess_errors([study for _, study in ready], [labels for labels, _ in ready])
    found = []
    for labels in campaign.groups:
        mine = [study for group, study in ready if group == labels]
        if mine:
            rows = [figures_of(study) | excess.get(study.path, {}) for study in mine]
            names = list(dict.fromkeys(name for row in rows for name in row))
            values = {name: tuple(row[name] for row in rows if name in row) for name in names}
            frames = int(np.mean([frames_of(study) for study in mine]))
            lost = tuple(sum(_summary(study, "simulate")[why] for study in mine) for why in ("mirrored", "diverged"))
            replicas = sum(_summary(study, "simulate")["replicas"] for study in mine)
            found.append(Group(labels, frames, values, UNITS, replicas, *lost))
    return tuple(found)


def figures_of(study: Study) -> dict[str, float]:
    """The figures of one member by name, as far as it has them."""
    estimates = read_json(study.folder("aggregate") / "estimates.json")
    errors = read_json(study.folder("train") / "errors.json")
    own = errors.get("molecules", {}).get(study.molecule, errors)
    found = {"explained of the delta forces": float(own["explained_delta"])}
    for row in estimates["estimates"]:
        name = ESTIMATES.get((row["label"], row["against"]))
        if name is not None and row["value"] is not None:
            found[name] = float(row["value"])
    network = estimates["integration"].get("network")
    if network is not None:
        found["α offset by integration of the network's forces"] = network["difference_kT"] - network["histogram_kT"]
    return {name: value for name, value in found.items() if np.isfinite(value)}


def excess_errors(studies: Sequence[Study], groups: Sequence[tuple[str, ...]]) -> dict[Path, dict[str, float]]:
    """The excess force error of each study, by the path of its file; none where nothing is there to compare with."""
    densities: dict[Any, list[int]] = {}
    for number, study in enumerate(studies):
        densities.setdefault(_density(study), []).append(number)
    found = {}
    for numbers in densities.values():
        forces = _forces([studies[number] for number in numbers])
        best = max(numbers, key=lambda number: _knows(studies[number]))
        of_best = [place for place, number in enumerate(numbers) if groups[number] == groups[best]]
        for place, number in enumerate(numbers):
            others = [other for other in of_best if other != place]
            if others:
                difference = forces[place] - forces[others].mean(axis=0)
                found[studies[number].path] = {EXCESS: float(np.sqrt(np.mean(difference**2)))}
    return found


def _density(study: Study) -> tuple[Any, ...]:
    """What says which density a study's model aims at: the frames, and the noise on them; a learnt kernel undoes it."""
    kernel = study.tables["kernel"]
    return study.fingerprint("prepare"), study.molecule, 0.0 if kernel.kind == "none" else kernel.sigma_nm


def frames_of(study: Study) -> int:
    """Frames of the archive that a study's model was trained on, or its learnt kernel, however many labels it drew."""
    return read_json(study.folder("flow" if "flow" in study.tables else "train") / "errors.json")["train_frames"]


def _knows(study: Study) -> tuple[int, bool]:
    """How much a study's model was told: models that were told more are better known."""
    return frames_of(study), study.tables["kernel"].kind not in WITHOUT_FORCES


def _forces(studies: Sequence[Study]) -> np.ndarray:
    """Forces of the models of one density on the same held-out frames; (study frame bead 3), kJ/mol/nm."""
    import torch

    from hpc_cg.forcefield.evaluator import evaluator
    from hpc_cg.learning.checkpoint import load_forcefield
    from hpc_cg.learning.labels import label_source
    from hpc_cg.randomness import stream
    from hpc_cg.store.dataset import load, split

    first = studies[0]
    source = label_source(first.folder("prepare"), first.folder("kernel"), first.molecule)
    frames = load(source.store, first.molecule, first.tables["train"].memory_limit_gb, part=True)
    _, held_out = split(frames, source.spec.held_out)
    positions = frames.positions[held_out[:: max(1, len(held_out) // EXCESS_FRAMES)]]
    if first.tables["kernel"].kind != "none":
        noise = stream(0, "excess").standard_normal(positions.shape, dtype=np.float32)
        positions = positions + np.float32(first.tables["kernel"].sigma_nm) * noise
    parts = torch.from_numpy(np.ascontiguousarray(positions)).split(EXCESS_BATCH)
    rows = []
    for study in studies:
        evaluate = evaluator(load_forcefield(study.folder("train"), study.molecule)[0], tabulated=False)
        rows.append(np.concatenate([evaluate(part).forces.numpy() for part in parts]))
    return np.stack(rows)


def _summary(study: Study, stage: str) -> Mapping[str, Any]:
    seal = read_seal(study.folder(stage))
    assert seal is not None, "stages before a sealed one are sealed"
    return seal.summary


def _as_json(group: "Group") -> dict[str, Any]:
    return {
        "labels": group.labels,
        "train_frames": group.n_frames,
        "replicas": group.n_replicas,
        "mirrored": group.n_mirrored,
        "diverged": group.n_diverged,
        "figures": {name: {"values": values, "unit": UNITS.get(name, "")} for name, values in group.values.items()},
    }
