"""A study: the tables of all stages together, and every path of a run.

The fingerprint of a stage hashes its own table and the fingerprints of the stages it reads: changing a late table
leaves early products sealed, changing an early one makes the later ones stale. Settings that change a product by
rounding at most (``BESIDE``) are left out.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from hpc_cg.config import STRICT, parse_tables, read_toml
from hpc_cg.files import digest, digest_content
from hpc_cg.stages import (
    aggregate,
    backmapping,
    flow,
    kernel,
    molecules,
    prepare,
    reference,
    report,
    simulate,
    slow,
    train,
)
from hpc_cg.stages.aggregate import AggregateConfig
from hpc_cg.stages.flow import FlowConfig
from hpc_cg.stages.kernel import LEARNT, KernelConfig
from hpc_cg.stages.prepare import PrepareConfig
from hpc_cg.stages.product import State, read_seal, state
from hpc_cg.stages.reference import ReferenceConfig
from hpc_cg.stages.report import ReportConfig
from hpc_cg.stages.simulate import SimulateConfig
from hpc_cg.stages.train import TrainConfig

FORMAT = 2
"""Raised when a product of an older version must not be taken for one of this."""

ARRAYS = ("kernel", "simulate")
"""Stages whose items may be done by processes that never meet: these have ``divisible``, ``n_items``, ``pending``,
``lay_out``, ``work_on`` and ``gather``."""

BESIDE: dict[str, frozenset[str]] = {
    "reference": reference.BESIDE,
    "prepare": prepare.BESIDE,
    "flow": flow.BESIDE,
    "kernel": kernel.BESIDE,
    "train": train.BESIDE,
    "simulate": simulate.BESIDE,
    "aggregate": aggregate.BESIDE,
    "report": report.BESIDE,
}
"""Settings of each stage that change its product by rounding at most. What was made with others stays sealed, and what
was begun with others goes on: one that says what a file of a half-made product holds is none of them."""

UPSTREAM: dict[str, tuple[str, ...]] = {
    "reference": (),
    "prepare": ("reference",),
    "flow": ("prepare",),
    "kernel": ("prepare", "flow"),
    "train": ("prepare", "kernel"),
    "simulate": ("prepare", "train"),
    "aggregate": ("prepare", "kernel", "train", "simulate"),
    "report": ("prepare", "flow", "kernel", "train", "simulate", "aggregate"),
}
"""Which sealed products each stage reads."""


@dataclass(frozen=True, config=STRICT)
class StudyConfig:
    """The table [study]: what all stages share.

    folder   of the products
    root     the folder that relative paths start from; empty for that of the study file
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    temperature_K: float = Field(gt=0)
    folder: str = "run"
    root: str = ""


TABLES: dict[str, type] = {
    "study": StudyConfig,
    "reference": ReferenceConfig,
    "prepare": PrepareConfig,
    "flow": FlowConfig,
    "kernel": KernelConfig,
    "train": TrainConfig,
    "simulate": SimulateConfig,
    "aggregate": AggregateConfig,
    "report": ReportConfig,
}


class Study:
    """A study file that has been read and found right.

    tables   of its stages; [flow] is one only where the kernel is a learnt one
    places   of products that lie elsewhere than in the run folder, by their stages
    """

    def __init__(self, path: Path, tables: dict[str, Any], places: Mapping[str, Path] | None = None):
        self.path = path.resolve()
        learnt = tables["kernel"].kind in LEARNT
        self.tables = {name: table for name, table in tables.items() if learnt or name != "flow"}
        self.study: StudyConfig = tables["study"]
        self.places = places or {}

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def root(self) -> Path:
        """The folder that relative paths of the study start from."""
        return self.path.parent / self.study.root

    @property
    def run_folder(self) -> Path:
        return (self.root / self.study.folder).resolve()

    def folder(self, stage: str) -> Path:
        """The product folder of a stage, itself: in a campaign run/STAGE may be a link to one that studies share."""
        return self.places[stage] if stage in self.places else (self.run_folder / stage).resolve()

    @property
    def molecule(self) -> str:
        """The molecule that is simulated, judged and reported; raises ConfigError where none of several is named."""
        return molecules.simulated_molecule(self)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this study in order.

        ``reference`` only where the study makes its own archive, ``flow`` only where its kernel is a learnt one.
        """
        return tuple(name for name in UPSTREAM if name in self.tables)

    def upstream(self, stage: str) -> tuple[str, ...]:
        return tuple(name for name in UPSTREAM[stage] if name in self.tables)

    def fingerprint(self, stage: str) -> str:
        """Digest of everything in the study file that decides the product of a stage."""
        before = {name: self.fingerprint(name) for name in self.upstream(stage)}
        own = {name: value for name, value in asdict(self.tables[stage]).items() if name not in BESIDE[stage]}
        return digest([FORMAT, stage, own, self.study.name, self.study.temperature_K, before])

    def inputs(self, stage: str) -> dict[str, str]:
        """Identity of each upstream seal that is there; and of files: for prepare of the archive's and the topology,
        for aggregate of the folded structure."""
        seals = {name: read_seal(self.folder(name)) for name in self.upstream(stage)}
        found = {name: seal.identity for name, seal in seals.items() if seal is not None}
        files = {"prepare": molecules.sources, "aggregate": slow.sources}
        return found | (files[stage](self) if stage in files else {})

    def intent(self, stage: str) -> dict[str, str]:
        """What a half-made product was begun with, if it may be continued: as ``inputs``, but for prepare cheap."""
        upstream = {name: seal.identity for name in self.upstream(stage) if (seal := read_seal(self.folder(name)))}
        return upstream | (molecules.intent(self) if stage == "prepare" else {})

    def states(self, known: "dict[tuple[Any, ...], State] | None" = None) -> dict[str, State]:
        """Each stage: sealed, stale, partial or absent; stale too where something before it is not sealed.

        known   of products that were looked at already, for studies that share some; what is looked at is added
        """
        found: dict[str, State] = {}
        known = {} if known is None else known
        for stage in self.stages:
            key = (self.fingerprint(stage), *(self.folder(name) for name in (stage, *self.upstream(stage))))
            if key not in known:
                known[key] = state(self.folder(stage), self.fingerprint(stage), partial(self.inputs, stage))
            own = known[key]
            whole = all(found[name] == State.SEALED for name in self.upstream(stage))
            found[stage] = State.STALE if own == State.SEALED and not whole else own
        return found

    def state(self, stage: str) -> State:
        """The state of one stage."""
        return self.states()[stage]

    def done(self, stage: str) -> tuple[int, int, str] | None:
        """What a partial stage has finished, of how much, in which unit, by what lies on disk; None if unknown."""
        counters = {"prepare": prepare.done, "kernel": kernel.done, "simulate": simulate.done}
        counters |= {"flow": flow.done, "train": train.done}
        return counters[stage](self) if stage in counters else None

    @property
    def digest(self) -> str:
        """Digest of the study file as it is now."""
        return digest_content(self.path)


def read_study(path: Path) -> Study:
    """Read and check a study file; raises ConfigError with all its mistakes, MissingInput."""
    wanted = {name: cls for name, cls in TABLES.items() if name != "reference" or "reference" in read_toml(path)}
    study = Study(path, parse_tables(path, wanted, required=("study", "prepare")))
    # what tables ask of one another, which else would be said only when the network is trained
    train.labels_per_use(study)
    if study.tables["train"].molecules or study.tables["simulate"].molecule:
        molecules.simulated_molecule(study)
    backmapping.check(study)
    slow.check(study)
    return study
