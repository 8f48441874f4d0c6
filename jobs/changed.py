"""Has the study been edited since its job was submitted? What differs is named, and nothing is done."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc_cg.errors import ChangedStudy, HpcCgError
from hpc_cg.stages.study import Study, read_study

NAMED = 5


def check_unchanged(study: Study, stage: str, submitted: Path) -> None:
    """Raise ChangedStudy, with the settings, where something that decides the product of ``stage`` was changed.

    submitted   the copy of the study file that was made when the job was submitted
    """
    try:
        before = read_study(submitted)
    except (HpcCgError, OSError) as error:
        raise ChangedStudy(
            f"the copy of the study that {stage} was submitted with", str(error), "submit it again"
        ) from error
    if before.fingerprint(stage) == study.fingerprint(stage) and before.study.folder == study.study.folder:
        return
    found = differences(before, study, ("study", *_all_before(study, stage), stage))
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    raise ChangedStudy(
        f"{stage} as {study.path.name} was when it was submitted",
        f"{study.path} edited since: {'; '.join(found[:NAMED])}{more}",
        "undo that, or submit again: what was made with the old settings is kept in superseded/",
    )


def differences(before: Study, now: Study, tables: tuple[str, ...]) -> list[str]:
    """A sentence for each setting of some tables that differs."""
    found = []
    for name in tables:
        old, new = (_settings(one, name) for one in (before, now))
        for key in [key for key in old | new if old.get(key) != new.get(key)]:
            found.append(f"{name}.{key} was {_shown(old, key)}, is {_shown(new, key)}")
    return found or ["tables that were added or taken out"]


def _settings(study: Study, table: str) -> dict[str, Any]:
    return asdict(study.tables[table]) if table in study.tables else {}


def _shown(settings: dict[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not there"


def _all_before(study: Study, stage: str) -> tuple[str, ...]:
    """Every stage whose settings decide the product of this one, in order."""
    before: set[str] = set()
    todo = list(study.upstream(stage))
    while todo:
        name = todo.pop()
        before.add(name)
        todo += study.upstream(name)
    return tuple(name for name in study.stages if name in before)
