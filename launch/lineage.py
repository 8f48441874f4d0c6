"""From a figure back to the trajectories: each product, who made it, and from what.

Every seal holds the identity of the products it was made from, the digest of the study file, the code, and the job with
its attempt; the store knows its files with their digests. Put in order they are one chain, and where a link does not
fit (a product that was made anew below a later one) it says so.
"""

from collections.abc import Iterator
from typing import Any

from hpc_cg.errors import HpcCgError
from hpc_cg.stages.molecules import Place, molecules_of
from hpc_cg.stages.product import Seal, read_seal
from hpc_cg.stages.study import Study

SHOWN_FILES = 12


def lineage(study: Study, stage: str) -> Iterator[str]:
    """The chain behind a sealed product, the newest first, as lines; nothing for one that is not sealed."""
    seal = read_seal(study.folder(stage))
    if seal is None:
        return
    yield "  lineage:"
    wanted = {stage: seal.identity}
    for name in reversed(study.stages):
        if name not in wanted:
            continue
        found = read_seal(study.folder(name))
        if found is None:
            yield f"    {name}: gone; it had the identity {wanted[name]}"
            continue
        yield f"    {name} {found.identity}{_made(found.made)}"
        if found.identity != wanted[name]:
            yield f"      is not the one that was read: that was {wanted[name]}"
        wanted |= {before: found.inputs[before] for before in found.inputs if before in study.stages}
        yield from (f"      part {_part(made)}" for made in found.made.get("parts", [])[:SHOWN_FILES])
        if name == "report":
            yield from (f"      {path} {digest}" for path, digest in sorted(found.manifest.items()))
        if name == "prepare":
            yield from _archive(study, found)


def _made(made: dict[str, Any]) -> str:
    """Who made a product, in words: when, in which job and attempt or on which host, from which study and code."""
    code = made.get("code", {})
    commit = f", commit {code['commit'][:10]}" if code.get("commit") else ""
    job = f"job {made['job']}, attempt {made.get('attempt', 1)}" if made.get("job") else "no job"
    study = f"; study {made['study_digest']}" if made.get("study_digest") else ""
    version = f"; code {code['version']} ({code['sources']}{commit})" if code else ""
    return f": {made.get('when', '')}, {job} on {made.get('host', '')}{study}{version}"


def _part(made: dict[str, Any]) -> str:
    return f"{made['part']}: {made['when']}, job {made['job'] or 'none'}, attempt {made['attempt']}, on {made['host']}"


def _archive(study: Study, seal: Seal) -> Iterator[str]:
    """The trajectories that a store was made of, with their digests."""
    from hpc_cg.archive.catalogue import Catalogue

    for key, value in sorted(seal.inputs.items()):
        if key not in study.stages:
            yield f"      {key}: {value}"
    for molecule in molecules_of(study.tables["prepare"]):
        try:
            catalogue = Catalogue(Place(study.folder("prepare"), molecule.name).index)
        except (HpcCgError, OSError) as error:
            yield f"      {molecule.name}: its index cannot be read: {error}"
            continue
        for number in range(min(len(catalogue), SHOWN_FILES)):
            segment = catalogue[number]
            inside = f":{segment.inside}" if segment.inside else ""
            yield f"      {segment.path}{inside} {segment.digest}, {segment.n_frames:,} frames"
        if len(catalogue) > SHOWN_FILES:
            yield f"      and {len(catalogue) - SHOWN_FILES:,} more, in {catalogue.folder}"
