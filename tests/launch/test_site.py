"""A site file says what a cluster has; what goes beyond is refused before it is submitted, with every mistake named."""

from pathlib import Path

import pytest

from hpc_cg.errors import ConfigError, MissingInput
from hpc_cg.stages.study import UPSTREAM
from launch.resources import Resources
from launch.site import ELEMENTS, GATHERED, Partition, Site, beyond, find_site, read_site
from launch.templates import DEFAULTS

SMALL = """
[site]
partition = "small"
account = "project_1"
mpi = "pmix"
setup = ["module load python"]

[partitions.small]
max_minutes = 60
max_nodes = 1
cpus_per_node = 8
mem_gb_per_node = 16

[partitions.gpu]
max_minutes = 1440
max_nodes = 4
cpus_per_node = 32
mem_gb_per_node = 256
gpus_per_node = 2
gpu = "gpu:h100"

[stages.train]
partition = "gpu"
nodes = 2
"""


def site_of(folder: Path, text: str) -> Site:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    return read_site(path)


def test_without_a_file_a_stage_asks_for_the_defaults(tmp_path: Path) -> None:
    site = find_site(tmp_path / "study.toml", environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert site.path is None
    assert site.resources("report").time_minutes == DEFAULTS["report"].time_minutes
    assert site.resources("simulate", "element").gpus_per_node == ELEMENTS["simulate"].gpus_per_node
    assert site.resources("simulate", "gather").mem_gb == GATHERED.mem_gb


def test_defaults_are_fitted_to_the_partition_and_wishes_stay(tmp_path: Path) -> None:
    site = site_of(tmp_path, SMALL)
    prepare, train = site.resources("prepare"), site.resources("train")
    assert (prepare.nodes, prepare.cpus_per_node, prepare.mem_gb, prepare.time_minutes) == (1, 8, 16, 60)
    assert (prepare.account, prepare.mpi, prepare.setup) == ("project_1", "pmix", ("module load python",))
    assert (train.partition, train.nodes, train.gpus_per_node, train.tasks_per_node) == ("gpu", 2, 2, 2)
    assert train.gpu == "gpu:h100"
    assert site.resources("simulate", "element").gpus_per_node == 0  # this partition has none


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ("nodes = 5", "train asks 5 nodes, the partition gpu has 4 (max_nodes)"),
        ("tasks_per_node = 9\ncpus_per_task = 4", "train asks 36 cores per node"),
        ("mem_gb = 300", "train asks 300 GB per node, the partition gpu has 256"),
        ("time_minutes = 2000", "train asks 2000 minutes, the partition gpu has 1440"),
        ("gpus_per_node = 4", "train asks 4 GPUs per node, the partition gpu has 2"),
    ],
)
def test_what_a_partition_does_not_have_is_refused(tmp_path: Path, wish: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        site_of(tmp_path, SMALL.replace("nodes = 2", wish))
    assert told in str(caught.value) and "site.toml" in str(caught.value)


def test_every_mistake_of_the_file_is_told_at_once(tmp_path: Path) -> None:
    text = '[site]\nacount = "a"\nmax_array_size = 0\n[partition.a]\n[stages.prepair]\nnode = 2\n'
    text += '[partitions.b]\nmax_nodes = "x"\n'
    with pytest.raises(ConfigError) as caught:
        site_of(tmp_path, text)
    told = str(caught.value)
    for words in (
        "site.acount is not a setting. Did you mean account?",
        "site.max_array_size = 0",
        "partition is not a table of a site. Did you mean partitions?",
        "stages.prepair is not a stage. Did you mean prepare?",
        "stages.prepair.node is not a setting. Did you mean nodes?",
        "partitions.b.max_nodes = 'x'",
    ):
        assert words in told


def test_an_unknown_partition_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no partition 'gpus' in this file. Did you mean gpu?"):
        site_of(tmp_path, SMALL.replace('partition = "gpu"', 'partition = "gpus"'))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("partition", "a\nb"),
        ("partition", "debug --wrap=id"),
        ("account", "$(id)"),
        ("qos", "a;b"),
        ("setup", "module load a; id"),
        ("container", "img `id`"),
        ("scratch", "/tmp/$HOME"),
        ("scratch", '/tmp"x'),
        ("python", "/usr/bin/python;id"),
    ],
)
def test_words_that_a_shell_could_read_otherwise_are_refused(tmp_path: Path, setting: str, value: str) -> None:
    written = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    text = f'["{written}"]' if setting == "setup" else f'"{written}"'
    with pytest.raises(ConfigError, match=setting):
        site_of(tmp_path, f"[site]\n{setting} = {text}\n")


def test_the_file_that_is_named_goes_before_the_variable_and_the_neighbour(tmp_path: Path) -> None:
    for name in ("named", "variable", "beside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "site.toml").write_text(f'[site]\nname = "{name}"\n')
    study, environ = tmp_path / "beside" / "study.toml", {"XDG_CONFIG_HOME": str(tmp_path)}
    assert find_site(study, environ=environ).site.name == "beside"
    environ["HPC_CG_SITE"] = str(tmp_path / "variable" / "site.toml")
    assert find_site(study, environ=environ).site.name == "variable"
    assert find_site(study, tmp_path / "named" / "site.toml", environ).site.name == "named"
    with pytest.raises(MissingInput):
        find_site(study, tmp_path / "none.toml", environ)


def test_a_limit_that_is_not_known_is_not_checked() -> None:
    assert beyond(Resources(nodes=1000, mem_gb=10**6), Partition()) == ()
    assert beyond(Resources(nodes=1000), Partition(cpus_per_node=4)) == ()


def test_every_stage_has_a_default_that_fits_the_smallest_node(tmp_path: Path) -> None:
    text = '[site]\npartition = "a"\n[partitions.a]\nmax_minutes = 1\nmax_nodes = 1\n'
    text += "cpus_per_node = 1\nmem_gb_per_node = 1\n"
    site = site_of(tmp_path, text)
    for stage in UPSTREAM:
        ask = site.resources(stage)
        assert (ask.nodes, ask.cpus_per_node, ask.mem_gb, ask.time_minutes, ask.gpus_per_node) == (1, 1, 1, 1, 0)
