"""What the page says of a transition kernel, by the record that ``stages/transitions.py`` makes of it."""

from collections.abc import Mapping
from typing import Any

from hpc_cg.report.page import Section
from hpc_cg.report.tables import Table, count, significant, with_error

VARIATES = {0: "mapped forces of the later frame"}


def section(record: Mapping[str, Any], fit: Mapping[str, Any], drawn: Mapping[str, Any]) -> Section:
    """Labels with and without mapped forces, and how right the law of the pairs is.

    fit     of the stage flow: how the fit ended
    drawn   of all labels: how many failed
    """
    text = (
        f"A {fit['kind']} kernel of transitions over {fit['lag_ps']:g} ps, from frames with noise of "
        f"{fit['sigma_nm']:g} nm, fitted on {count(fit['train_frames'])} pairs; the weights of step "
        f"{count(fit['chosen_step'])}, with a loss of {significant(fit['held_out'])} on held-out pairs, give the "
        f"labels, and the last choice of control variates is used. {count(drawn['failed'])} of "
        f"{count(drawn['frames'])} pairs got no label. Labels are right as far as the kernel is: a law that is too "
        "smooth tells bonds to be softer than they are."
    )
    labels = Table(
        ("control variate", "rms label, fitted pairs (kJ/mol/nm)", "rms label, held-out pairs (kJ/mol/nm)"),
        tuple(
            (
                " and ".join(VARIATES[number] for number in one["used"]) or "none",
                *(significant(one[side] ** 0.5) for side in ("train", "held_out")),
            )
            for one in record["choices"]
        ),
    )
    found = record["identities"]
    rows = [
        ("(mean score / its error)², mean over beads and axes", significant(found["misfit"], 3), "about 1"),
        (
            "virial, mean of (y − c) · score",
            with_error(found["virial"], found["virial_error"]),
            f"\u2212{found['dimension']}",
        ),
        *(
            (f"stiffness of {name} in the label alone, over that in the frames", with_error(*ratio), "1")
            for name, *ratio in found["stretch"]
        ),
    ]
    identities = Table((f"identity, on {count(found['pairs'])} held-out pairs", "found", "if true"), tuple(rows))
    return Section("Learnt kernel", text=text, tables=(labels, identities))
