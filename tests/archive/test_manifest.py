"""A list of files names files inside its own folder, whatever somebody wrote into it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_cg.archive import manifest
from hpc_cg.archive.listing import find
from hpc_cg.errors import HpcCgError, MissingInput, UnreadableFile


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with two runs, beside a file that lists must not reach."""
    (tmp_path / "secret.h5").write_bytes(b"x")
    for name in ("run 1", "run2"):
        (tmp_path / "archive" / name).mkdir(parents=True)
        (tmp_path / "archive" / name / "traj.h5").write_bytes(b"x")
    return tmp_path / "archive"


def names(folder: Path, text: str | bytes) -> list[str]:
    path = folder / "all.manifest"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [str(found.relative_to(folder)) for found in manifest.read_manifest(path)]


def test_paths_comments_empty_lines_and_sums_are_understood(folder):
    text = f"# March\n\n  run2/traj.h5\r\n{'ab' * 32}  run 1/traj.h5\n{'AB' * 32} *./run2/traj.h5"
    assert names(folder, text) == ["run2/traj.h5", "run 1/traj.h5", "run2/traj.h5"]
    assert names(folder, b"\xef\xbb\xbfrun2/traj.h5\n") == ["run2/traj.h5"]


def test_a_list_in_the_study_stands_for_its_files(folder, tmp_path):
    (folder / "some.txt").write_text("run2/traj.h5\nrun 1/traj.h5\nrun2/traj.h5\n")
    assert find(["archive/some.txt"], tmp_path) == (folder / "run 1/traj.h5", folder / "run2/traj.h5")
    with pytest.raises(MissingInput):
        find(["archive"], tmp_path)  # a folder is searched for trajectories, not for lists


@pytest.mark.parametrize(
    "line", ["../secret.h5", "run2/../../secret.h5", "{}/secret.h5", "link.h5", "outside/secret.h5"]
)
def test_ways_out_of_the_folder_are_refused_with_line_and_path(folder, tmp_path, line):
    (folder / "link.h5").symlink_to(tmp_path / "secret.h5")
    (folder / "outside").symlink_to(tmp_path)
    line = line.format(tmp_path)
    with pytest.raises(UnreadableFile, match=r"line 2 of .*all\.manifest.*" + line.split("/")[-1]):
        names(folder, f"run2/traj.h5\n{line}\n")


def test_links_within_the_folder_are_followed_and_keep_their_name(folder):
    (folder / "named.h5").symlink_to(folder / "run2/traj.h5")
    assert names(folder, "named.h5") == ["named.h5"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"run2/traj.h5\0", "NUL"),
        (b"r\xff.h5", "UTF-8"),
        (b"# only\n", "no paths"),
        (b"gone.h5", "line 1"),
        (b"run2", "run2"),
    ],
)
def test_what_is_no_list_is_refused_with_the_reason(folder, text, said):
    with pytest.raises(HpcCgError, match=said):
        names(folder, text)


def test_a_list_beyond_all_size_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_BYTES", 100)
    with pytest.raises(UnreadableFile, match="MB"):
        names(folder, "run2/traj.h5\n" * 20)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.lists(st.sampled_from([b"..", b"/", b"run2", b"traj.h5", b"outside", b".", b" ", b"~", b"\r"])).map(
                b"".join
            ),
        )
    ).map(b"\n".join)
)
def test_no_list_leads_outside_or_breaks_the_reader(folder, tmp_path, content):
    if not (folder / "outside").is_symlink():
        (folder / "outside").symlink_to(tmp_path)
    path = folder / "fuzz.manifest"
    path.write_bytes(content)
    try:
        found = manifest.read_manifest(path)
    except HpcCgError:
        return
    assert all(source.resolve().is_relative_to(folder) and source.is_file() for source in found)
