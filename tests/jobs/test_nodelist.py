"""Slurm's node lists written out, as scontrol show hostnames writes them."""

import pytest

from hpc_cg.errors import BrokenLaunch
from jobs.nodelist import expand_nodelist


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("a[1-3,7]", ["a1", "a2", "a3", "a7"]),
        ("gpu[08-10],login-2.site", ["gpu08", "gpu09", "gpu10", "login-2.site"]),
        ("r[1-2]n[1,3]-ib", ["r1n1-ib", "r1n3-ib", "r2n1-ib", "r2n3-ib"]),
    ],
)
def test_node_lists_are_written_out(text, hosts):
    assert expand_nodelist(text) == hosts


@pytest.mark.parametrize("text", ["", "a[1-", "a[1-2-3]", "a b", "a,,b", "a[]", "$(id)"])
def test_what_is_no_node_list_is_refused(text):
    with pytest.raises(BrokenLaunch, match="MASTER_ADDR"):
        expand_nodelist(text)
