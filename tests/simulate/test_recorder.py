import numpy as np
import pytest
import zarr

from hpc_cg.errors import DamagedProduct, MissingInput, NotSealed
from hpc_cg.files import write_arrays
from hpc_cg.simulate.recorder import block_path, last_block, read_block, write_block, write_zarr


@pytest.fixture(scope="module")
def blocks(ensemble, tmp_path_factory):
    """Two groups of three replicas, two blocks of 100 steps each; replica 4 starts as its mirror image."""
    folder = tmp_path_factory.mktemp("blocks")
    frames = ensemble.frames.copy()
    frames[4] *= np.array([1.0, 1.0, -1.0])
    for group, replicas in enumerate(((0, 1, 2), (3, 4, 5))):
        state, out = ensemble.start(replicas, frames), ()
        for block in range(2):
            result = ensemble.run(state, 100, replicas, out)
            write_block(folder, group, block, result.record)
            state, out = result.state, result.quarantined
    return folder


def test_block_survives_the_disk_bit_for_bit(ensemble, tmp_path):
    record = ensemble.run(ensemble.start((0, 1)), 100, (0, 1)).record
    path = write_block(tmp_path, 3, 7, record)
    again = read_block(tmp_path, 3, 7)
    assert path == block_path(tmp_path, 3, 7)
    for name, value in vars(record).items():
        kept = getattr(again, name)
        assert np.array_equal(kept, value) if isinstance(value, np.ndarray) else kept == value, name


def test_last_block_counts_only_blocks_without_a_gap(blocks, tmp_path):
    assert last_block(blocks, 0) == 1 and last_block(blocks, 5) is None
    (tmp_path / block_path(tmp_path, 0, 1).name).touch()
    assert last_block(tmp_path, 0) is None
    block_path(tmp_path, 0, 0).touch()
    (tmp_path / ".group-00000-block-00002.npz.12345678.partial").touch()
    assert last_block(tmp_path, 0) == 1


def test_missing_and_foreign_blocks_are_told(tmp_path):
    with pytest.raises(MissingInput, match="group-00000-block-00000"):
        read_block(tmp_path, 0, 0)
    write_arrays(block_path(tmp_path, 0, 0), positions=np.zeros(3))
    with pytest.raises(DamagedProduct, match="replica_ids"):
        read_block(tmp_path, 0, 0)


def test_ensemble_store_holds_every_replica_in_order(ensemble, blocks, tmp_path):
    path = tmp_path / "ensemble.zarr"
    for _ in range(2):
        write_zarr(path, blocks, 2, 2, ensemble.system, 0.1, {"temperature_K": 300.0})
    store = zarr.open_group(path, mode="r")
    positions = store["positions"][:]
    assert positions.shape == (6, 4, 6, 3) and positions.dtype == np.float32
    assert np.array_equal(positions[5, 2:], read_block(blocks, 1, 1).positions[:, 2])
    assert np.isnan(positions[4]).all() and np.isfinite(np.delete(positions, 4, axis=0)).all()
    assert np.array_equal(store["energies"][0, :2], read_block(blocks, 0, 0).energies[:, 0])
    assert store.attrs["quarantined"] == [[4, 0, "mirrored"]]
    assert store.attrs["temperature_K"] == 300.0 and store["positions"].attrs["unit"] == "nm"
    assert store["positions"].metadata.dimension_names == ("replica", "frame", "bead", "xyz")
    assert [p.name for p in tmp_path.iterdir()] == ["ensemble.zarr"]


def test_ensemble_store_is_not_made_of_half_a_simulation(ensemble, blocks, tmp_path):
    with pytest.raises(NotSealed, match="group 0 with 2 of 3 blocks"):
        write_zarr(tmp_path / "ensemble.zarr", blocks, 2, 3, ensemble.system, 0.1, {})
    assert not (tmp_path / "ensemble.zarr").exists()
