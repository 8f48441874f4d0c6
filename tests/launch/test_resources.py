"""Resources take harmless words, and refuse what could become a second line or a second command."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hpc_cg.errors import ConfigError
from launch.resources import Resources

NAMES = ("partition", "account", "qos", "constraint", "job_name", "log_folder")


def test_words_of_real_sites_are_taken():
    Resources(
        nodes=8,
        gpus_per_node=4,
        partition="gpu-a100,gpu_h100",
        account="project_465001234",
        qos="normal",
        constraint="a100",
        mpi="pmix",
        setup=(
            "module load LUMI/24.03 cray-python",
            "source ~/envs/hpc_cg/bin/activate",
            "export NCCL_DEBUG=WARN",
        ),
        job_name="cln-s",
        log_folder="/scratch/u/run-1/logs/%x",
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", ["a\nb", "a;b", "$(id)", "`id`", "a|b", "a&b", "a b", "a'b", 'a"b', "--wrap=x", "a>b"]
)
def test_a_value_that_a_shell_could_read_otherwise_is_refused_by_name(name, value):
    if (name, value) == ("log_folder", "a b"):
        return  # stands between quotes
    with pytest.raises(ConfigError) as caught:
        Resources(**{name: value})
    assert f"{name} = {value!r}" in str(caught.value)


@pytest.mark.parametrize(
    "line", ["", "module load a; id", "echo $HOME", "a\nb", "a && b", "echo `id`", "x > y", "#SBATCH"]
)
def test_setup_lines_are_one_plain_command(line):
    with pytest.raises(ConfigError, match="setup = "):
        Resources(setup=("module load python", line))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nodes", 0),
        ("nodes", True),
        ("nodes", 1.5),
        ("gpus_per_node", -1),
        ("mem_gb", "4"),
        ("time_minutes", 0),
        ("mpi", "pmi3"),
        ("setup", "module load x"),
    ],
)
def test_impossible_values_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name} = "):
        Resources(**{name: value})


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        Resources(nodes=0, partition="a b", mpi="openmpi")
    assert len(caught.value.problems) == 3


@given(st.text(max_size=30))
def test_no_accepted_name_holds_more_than_one_word(text):
    try:
        Resources(account=text, setup=("true",))
    except ConfigError:
        return
    assert text.split() in ([], [text])
    assert not set(text) & set("\n\r;|&$`'\"\\<>(){}[]*?!#~")


def test_a_table_of_a_toml_file_becomes_resources():
    read = TypeAdapter(Resources).validate_json
    assert read('{"nodes": 2, "setup": ["module load x"]}') == Resources(nodes=2, setup=("module load x",))
    with pytest.raises(ValidationError, match="node"):
        read('{"node": 2}')
