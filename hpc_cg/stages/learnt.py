"""The learnt kernel of a study as stage kernel uses it: with its control variates, and what its draws are like."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_cg.stages import judgement, transitions
from hpc_cg.stages.molecules import only_trained

if TYPE_CHECKING:
    from hpc_cg.kernels.reverse import ReverseKernel
    from hpc_cg.kernels.transition import TransitionKernel
    from hpc_cg.stages.kernel import KernelConfig
    from hpc_cg.stages.study import Study

FIT_FRAMES = 4096
"""Frames, spread over the store, that the weights of control variates are fitted on; half as many are held out."""


def kernel_of(study: "Study", record: dict[str, Any] | None = None) -> "ReverseKernel | TransitionKernel":
    """The learnt kernel with the control variates of a record, or without any; on a GPU where there is one."""

    from hpc_cg.kernels.control import Controls
    from hpc_cg.kernels.reverse import ReverseKernel
    from hpc_cg.kernels.transition import TransitionKernel
    from hpc_cg.learning.checkpoint import fitted_on, load_density
    from hpc_cg.learning.distributed import own_device
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.layout import STORE

    device, name = own_device(), only_trained(study)
    known, beads = fitted_on(study.folder("flow")), open_spec(study.folder("prepare") / STORE, name).system.names
    if known is not None:
        known.refuse_other(name, beads, study.tables["flow"].sigma_nm, study.study.temperature_K)
    density = load_density(study.folder("flow"))[0].to(device)
    controls = None
    if record is not None:  # of no variate at all the list is empty
        matrices = np.asarray(record["controls"], dtype=np.float64)
        controls = Controls(matrices.reshape(-1, len(beads), len(beads)))
    with_forces = study.tables["kernel"].kind == "flow+forces"
    sigma_nm = study.tables["flow"].sigma_nm
    reach = None if known is None else known.reach
    kind = TransitionKernel if transitions.is_transition(study) else ReverseKernel
    return kind(density, sigma_nm, study.study.temperature_K, with_forces, controls, device, reach)


def record_of(study: "Study", molecule: str) -> dict[str, Any]:
    """The weights of the control variates, and what draws of the learnt kernel are like on held-out frames.

    label_mean_square   of the labels, as of other kernels
    choices             mean square of the labels with each choice of control variates: none, Z₁, Z₂, both
    judged              of ``judgement.of_draws``
    Raises TooManyFailures where a sample shows that more labels will fail than may.
    """
    from hpc_cg.frames import BeadFrames
    from hpc_cg.kernels.transition import TransitionKernel
    from hpc_cg.randomness import stream
    from hpc_cg.store import layout
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.order import spread
    from hpc_cg.store.stream import HELD_OUT, TRAIN, read_picks
    from hpc_cg.store.writer import epoch_sums

    kernel = kernel_of(study)
    if isinstance(kernel, TransitionKernel):
        return transitions.record_of(study, kernel, FIT_FRAMES)
    store = study.folder("prepare") / layout.STORE
    spec = open_spec(store, molecule)
    counts, names = epoch_sums(store, spec).counts, tuple(n for n in spec.arrays if n in ("positions", "forces"))
    draws: dict[int, judgement.Drawn] = {}
    for side, n_frames in ((TRAIN, FIT_FRAMES), (HELD_OUT, FIT_FRAMES // 2)):
        picks = spread(counts[:, side], n_frames)
        chosen = np.arange(sum(len(pick.ranks) for pick in picks))
        frames = read_picks(store, spec, counts[:, side], side, picks, chosen, names)
        positions = frames.arrays["positions"]
        condition = BeadFrames(positions, frames.arrays.get("forces", np.zeros_like(positions)), frames.weights)
        links = kernel.links(positions, stream(study.tables["kernel"].seed, "control variates", side))
        draws[side] = judgement.Drawn(condition, links, kernel.labels(condition, links))
    config: "KernelConfig" = study.tables["kernel"]
    choices, record = judgement.choose(kernel, draws[TRAIN], draws[HELD_OUT], config)
    judged = judgement.of_draws(kernel, spec.system, draws[TRAIN], draws[HELD_OUT], choices, config.ridge)
    return record | {"judged": judged}
