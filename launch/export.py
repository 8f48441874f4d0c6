"""The trained force field of a study, written for other programs."""

from pathlib import Path

from hpc_cg.errors import NotSealed
from hpc_cg.stages.product import need_seal
from hpc_cg.stages.study import Study


def export_forcefield(study: Study, path: Path, double: bool) -> tuple[Path, ...]:
    """Write the force field that train has sealed, with the start of the first replica as its example.

    Raises NotSealed where train is not sealed or was made with other settings, HpcCgError for a name that says no form.
    """
    import torch

    from hpc_cg.forcefield.portable import write_portable
    from hpc_cg.learning.checkpoint import load_forcefield
    from hpc_cg.learning.labels import label_source
    from hpc_cg.learning.starts import Starts

    seal = need_seal(study.folder("train"), "export")
    if seal.fingerprint != study.fingerprint("train"):
        raise NotSealed(
            "exporting the force field of this study",
            f"{study.folder('train')} made with other settings",
            "run the stage train again, or put the settings back",
        )
    forcefield, step = load_forcefield(study.folder("train"), study.molecule)
    source = label_source(study.folder("prepare"), study.folder("kernel"), study.molecule)
    example = Starts.of(source, study.tables["simulate"].seed).of_replicas((0,))[0]
    about = {"study": study.study.name, "molecule": study.molecule, "step": step, "identity": seal.identity}
    dtype = torch.float64 if double else torch.float32
    return write_portable(path, forcefield, study.study.temperature_K, example, dtype, about)
