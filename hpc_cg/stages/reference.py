"""Stage reference (optional): make an all-atom archive of alanine dipeptide with OpenMM, a file per trajectory."""

from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from hpc_cg.config import STRICT
from hpc_cg.files import digest, digest_file
from hpc_cg.share import Team
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.stages.study import Study


BESIDE: frozenset[str] = frozenset()
"""Every setting decides the trajectories."""


@dataclass(frozen=True, config=STRICT)
class ReferenceConfig:
    """The table [reference]: alanine dipeptide (amber14, OBC2 implicit solvent), independent trajectories."""

    n_trajectories: int = Field(default=4, ge=1)
    length_ps: float = Field(default=1000.0, gt=0)
    frame_ps: float = Field(default=0.2, gt=0)
    seed: int = Field(default=1, ge=0)


def work(study: "Study", team: Team, progress: Heartbeat) -> None:
    """Run the trajectories of this member's share that are not there yet."""
    from hpc_cg.archive import reference

    config: ReferenceConfig = study.tables["reference"]
    folder = study.folder("reference")
    n_frames = round(config.length_ps / config.frame_ps)
    if team.share.index == 0:
        reference.write_topology(folder / "topology.pdb")
    total, done = config.n_trajectories * n_frames, 0
    progress("simulating all atoms", 0, total, "frames")
    for number in team.take(range(config.n_trajectories)):
        path = folder / f"trajectory-{number:03d}.h5"

        def report(frames: int, start: int = done) -> None:
            progress("simulating all atoms", start + frames, total, "frames")

        if not path.exists():
            reference.run_trajectory(
                path,
                seed=config.seed * 1000 + number,
                temperature_K=study.study.temperature_K,
                n_frames=n_frames,
                frame_ps=config.frame_ps,
                progress=report,
            )
        done += n_frames
        progress("simulating all atoms", done, total, "frames")


def finish(study: "Study") -> tuple[str, dict]:
    """Digest of the archive, and its figures."""
    config: ReferenceConfig = study.tables["reference"]
    files = sorted(study.folder("reference").glob("*.h5"))
    content = digest([digest_file(path) for path in files])
    return content, {"trajectories": len(files), "ns": config.n_trajectories * config.length_ps / 1000}
