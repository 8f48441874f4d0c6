"""Every failure that a user can cause or mend, in one list.

An error is a short letter: what was asked, what was found, what to change. Bugs of ours are assertions, not these.
"""

from collections.abc import Sequence


class HpcCgError(ValueError):
    """Asked, found, change: the three parts of every message."""

    exit_code = 1

    def __init__(self, asked: str, found: str, change: str):
        self.asked, self.found, self.change = asked, found, change
        super().__init__(f"{asked}: found {found.rstrip('.')}. {change[:1].upper()}{change[1:].rstrip('.')}.")

    def __reduce__(self) -> tuple:
        return type(self), (self.asked, self.found, self.change)


class UnknownUnit(HpcCgError):
    """A unit that is not in hpc_cg.units."""


class ConfigError(HpcCgError):
    """study.toml holds mistakes; all of them are listed."""

    exit_code = 2

    def __init__(self, file: str, problems: Sequence[str]):
        self.file, self.problems = file, tuple(problems)
        ValueError.__init__(self, "\n".join(f"{file}: {problem}" for problem in problems))

    def __reduce__(self) -> tuple:
        return type(self), (self.file, self.problems)


class MissingInput(HpcCgError):
    """A file or folder that was named does not exist."""


class MissingStride(MissingInput):
    """The time between frames stands neither in the file nor in the study."""


class UnreadableFile(HpcCgError):
    """A file that is truncated, of another format, or not permitted."""


class ChangedFile(HpcCgError):
    """A source file that is no longer the one that was indexed."""


class BadFrames(HpcCgError):
    """Frames that hold no numbers where numbers are needed."""


class BadWeights(HpcCgError):
    """Weights of frames that do not belong to the archive, or are no weights."""


class AtomCountMismatch(HpcCgError):
    """A trajectory and its topology disagree on the number of atoms."""


class TopologyMismatch(AtomCountMismatch):
    """A trajectory whose atoms lie otherwise than the bonds of its topology say."""


class MissingForces(HpcCgError):
    """Forces were asked for and the archive holds none."""


class UnknownBeads(HpcCgError):
    """A map that selects nothing, or beads that a prior or a kernel does not know."""


class UnknownAtoms(HpcCgError):
    """A molecule that the force field of all atoms has no parameters for."""


class InvalidMap(HpcCgError):
    """A pair of coordinate and force maps that gives wrong mean forces."""


class MixedArchive(HpcCgError):
    """Segments that do not belong into one store."""


class TemperatureMismatch(HpcCgError):
    """A product was made at another temperature than the one asked for."""


class FolderNotWritable(HpcCgError):
    """The work folder cannot be written."""


class UnsafeFolder(HpcCgError):
    """A folder that others could write into, where what is read is trusted."""


class ChangedStudy(HpcCgError):
    """A study file that says something else than when its job was submitted."""

    exit_code = 2


class AlreadySubmitted(HpcCgError):
    """What is asked for is queued or running already."""


class QueueFull(HpcCgError):
    """More jobs than a user may have in the queue."""


class SchedulerFailed(HpcCgError):
    """The scheduler refused, failed, or did not answer in time."""


class DiskFull(HpcCgError):
    """No space left where a product is written."""


class FolderBusy(HpcCgError):
    """Another run works in the same folder."""


class NotSealed(HpcCgError):
    """A stage needs the product of the stage before, and that is not sealed."""


class DamagedProduct(HpcCgError):
    """A sealed product whose content is not what was sealed."""


class TooManyFailures(HpcCgError):
    """More was quarantined than the failure budget allows."""


class TooFewFrames(HpcCgError):
    """Not enough frames for what was asked."""


class UnfitLag(HpcCgError):
    """A lag time at which the frames of an archive give no pairs."""


class FitFailed(HpcCgError):
    """A fit that did not converge or has no answer.

    evidence   what was fitted, to be drawn (hpc_cg.forcefield.histograms.Evidence); it stays in its process
    """

    def __init__(self, asked: str, found: str, change: str, evidence: object = None):
        super().__init__(asked, found, change)
        self.evidence = evidence


class UnfitLevel(HpcCgError):
    """A level of noise that a schedule does not have."""


class SamplingDiverged(HpcCgError):
    """A sampler whose samples are no numbers, or left everything that data can be."""


class UnstableStep(HpcCgError):
    """A timestep with which a simulation cannot but diverge."""


class TrainingDiverged(HpcCgError):
    """A training step gave a loss that is no number."""


class OtherNumbers(HpcCgError):
    """A faster way to compute that gives other numbers, or none."""


class OutOfMemory(HpcCgError):
    """A product that does not fit the memory it is asked to fit."""


class BrokenLaunch(HpcCgError):
    """Processes that do not know of one another, or a launcher that is not there."""


class MissingExtra(HpcCgError):
    """An optional dependency that this command needs is not installed."""


class NoCompiler(HpcCgError):
    """Code in C was asked for and could not be compiled here."""
