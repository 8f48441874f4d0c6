"""Sending batch scripts to Slurm through submitit: its folder of pickles, its worker, its array of payloads.

What is pickled is a Task: four words, no state, the same at every attempt. The script is ours (templates.sbatch_text),
so that what is submitted, what a dry run shows and what lies in slurm_templates/ are one text. submitit's worker calls
the task, which takes over the signals at once: our own code stops at safe places, and the end of the script decides
whether the job goes back into the queue. Result pickles are never read.
"""

import shlex
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.core import core, utils
from submitit.slurm.slurm import SlurmJob

from hpc_cg.errors import SchedulerFailed
from jobs.task import Task
from launch.slurm import PATIENCE_S, ask

WORKER = "-u -m submitit.core._submit"


class Sbatch(core.PicklingExecutor):
    """A submitit executor for one batch script.

    folder        of pickles; must be the user's own
    text          the script; what the user's shell sets for sbatch does not go before it
    words         more words for sbatch, e.g. its dependency
    """

    job_class = SlurmJob

    def __init__(self, folder: Path, text: str, words: Sequence[str], n_tasks: int, patience_s: float = PATIENCE_S):
        super().__init__(folder)
        self.text, self.words, self.n_tasks, self.patience_s = text, tuple(words), n_tasks, patience_s

    def send(self, tasks: Sequence[Task]) -> str:
        """Submit one task, or an array of them; the job's number. Raises SchedulerFailed."""
        jobs = self._internal_process_submissions([utils.DelayedSubmission(task) for task in tasks])
        return str(jobs[0].job_id).partition("_")[0]

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[core.Job[Any]]:
        if len(delayed_submissions) == 1 and not self._is_array:
            return super()._internal_process_submissions(delayed_submissions)
        folder = Path(self.folder)
        pickles = [folder / f"{uuid.uuid4().hex}.pkl" for _ in delayed_submissions]
        for one, path in zip(delayed_submissions, pickles, strict=True):
            one.set_timeout(1, 0)  # submitit's own requeueing is not used
            one.dump(path)
        first = self._submit_command("")
        found: list[core.Job[Any]] = []
        for number, path in enumerate(pickles):
            job: core.Job[Any] = SlurmJob(folder=folder, job_id=f"{first.job_id}_{number}", tasks=[0])
            job.paths.move_temporary_file(path, "submitted_pickle")
            found.append(job)
        return found

    @property
    def _is_array(self) -> bool:
        return "\n#SBATCH --array=" in self.text

    def _submit_command(self, command: str) -> core.Job[Any]:
        script = Path(self.folder) / f".submission_file_{uuid.uuid4().hex}.sh"
        script.write_text(self.text, encoding="utf-8")
        answer = ask(self._make_submission_command(script), self.patience_s)
        number = self._get_job_id_from_submission_command(answer)
        job: core.Job[Any] = SlurmJob(folder=self.folder, job_id=number, tasks=list(range(self.n_tasks)))
        job.paths.move_temporary_file(script, "submission_file")
        return job

    def _num_tasks(self) -> int:
        return self.n_tasks

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self.text

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return ["sbatch", "--parsable", *self._named(), *self.words, str(submission_file_path)]

    def _named(self) -> list[str]:
        """Account, partition and QOS of the script again: variables of the shell go before lines of a script."""
        flags = ("account", "partition", "qos")
        lines = [line.removeprefix("#SBATCH ") for line in self.text.splitlines() if line.startswith("#SBATCH --")]
        return [line for line in lines if line.removeprefix("--").partition("=")[0] in flags]

    @staticmethod
    def _get_job_id_from_submission_command(string: str | bytes) -> str:
        text = string if isinstance(string, str) else string.decode()
        number = text.strip().rpartition("\n")[2].partition(";")[0]
        if not number.isdecimal():
            raise SchedulerFailed("submitting with sbatch", f"the answer {text!r}, no job number", "look with squeue")
        return number


def run_words(folder: Path) -> str:
    """What Python runs: submitit's worker, which reads the task from ``folder``."""
    return f"{WORKER} {shlex.quote(str(folder))}"
