"""What the words of a command name: a study or a campaign, and stages of it."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hpc_cg.errors import ConfigError
from jobs.task import CAMPAIGN


def campaign_of(words: list[str], command: str) -> Any:
    """The campaign among the words of a command; raises ConfigError, also for a study's file."""
    from hpc_cg.campaign.members import is_campaign, read_campaign

    files = [Path(word) for word in words if word not in (CAMPAIGN, "all")]
    typed = f"hpc-cg {command} {' '.join(words)}"
    if len(files) != 1:
        raise ConfigError(typed, [f"a campaign is one file. Try: hpc-cg {command} campaign campaign.toml."])
    if files[0].is_file() and not is_campaign(files[0]):
        raise ConfigError(typed, [f"{files[0]} is a study, not a campaign. Say: hpc-cg {command} {files[0]}."])
    return read_campaign(files[0])


def target_of(words: list[str], command: str = "run") -> tuple[str, Path]:
    """The stage and the study among the words of a command, in either order; raises ConfigError."""
    from hpc_cg.stages.study import UPSTREAM

    typed = f"hpc-cg {command} {' '.join(words)}"
    if len(words) > 2:
        raise ConfigError(typed, [f"more than a stage and a study file. Try: hpc-cg {command} STAGE study.toml."])
    if len(words) == 1 and words[0] in (*UPSTREAM, "all") and not Path(words[0]).is_file():
        raise ConfigError(typed, [f"the study file is missing. Try: {typed} study.toml."])
    if len(words) == 1:
        return "all", Path(words[0])
    stage, study = reversed(words) if words[0].endswith(".toml") and not words[1].endswith(".toml") else words
    return stage, Path(study)


def study_of(path: Path, command: str = "") -> Any:
    """The study in a file; raises ConfigError, for a campaign's with what to say instead.

    command   one that there is for campaigns, too
    """
    from hpc_cg.campaign.members import is_campaign, read_campaign
    from hpc_cg.stages.study import read_study

    if is_campaign(path):
        instead = [f"say hpc-cg {command} campaign {path}"] if command else []
        instead.append(f"name one of its members in {read_campaign(path).folder / 'members'}")
        raise ConfigError(str(path), [f"this is a campaign, not a study: {', or '.join(instead)}."])
    return read_study(path)


def stages_of(study: Any, target: str) -> tuple[str, ...]:
    if target == "all":
        return study.stages
    if target not in study.stages:
        known = (*study.stages, "all")
        meant = "".join(f" Did you mean {name}?" for name in get_close_matches(target, known, n=1))
        raise ConfigError(study.path.name, [f"{target} is no stage of this study.{meant} Known: {', '.join(known)}."])
    return (target,)
