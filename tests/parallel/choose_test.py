"""Which mesh: what is asked for, what is chosen, and one clear sentence when it cannot be."""

import dataclasses

import jax
import pytest

from jaxsae.errors import ConfigError
from jaxsae.parallel import MeshConfig, Need, choose_mesh, make_mesh, sizes, use

NEED = Need(d_in=64, d_sae=1024, rows=256)


@dataclasses.dataclass(frozen=True)
class Chip:
    id: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0


def chips(n):
    return [Chip(i) for i in range(n)]


def chosen(config=MeshConfig(), need=NEED, n=8, memory=None):
    found = choose_mesh(config, need, chips(n), memory)
    return found.mesh.shape["data"], found.mesh.shape["latent"], found.reason


def test_least_traffic_decides_and_is_told():
    # 8-fold data: gradients 2*7/8*8*64*1024 = 918 kB; 8-fold latent: reconstructions 2*7/8*4*64*256 = 115 kB
    assert chosen()[:2] == (1, 8)
    # a batch of 65,536 rows: 29.4 MB over latents, gradients are the cheaper
    data, latent, reason = chosen(need=Need(64, 1024, 65_536))
    assert (data, latent) == (8, 1)
    assert "0.918 MB" in reason


def test_memory_rules_meshes_out():
    need = Need(64, 1024, 65_536)  # 2.1 MB of state
    assert chosen(need=need, memory=1e6)[1] >= 4
    assert "2.1 MB" in chosen(need=need, memory=1e6)[2] or "0.0021 GB" in chosen(need=need, memory=1e6)[2]


def test_one_factor_given_the_other_follows():
    assert chosen(MeshConfig(data=2))[:2] == (2, 4)
    assert chosen(MeshConfig(latent=2))[:2] == (4, 2)
    assert chosen(MeshConfig(data=4, latent=2)) == (4, 2, "as the configuration says")


def test_members_of_a_sweep_are_spread_if_they_are_enough():
    for members, run in [(8, 8), (16, 8), (4, 1), (6, 1)]:
        shape = choose_mesh(MeshConfig(), dataclasses.replace(NEED, members=members), chips(8)).mesh.shape
        assert shape["run"] == run
        assert shape["data"] * shape["latent"] == 8 // run
    shape = choose_mesh(MeshConfig(latent=4), dataclasses.replace(NEED, members=8), chips(8)).mesh.shape
    assert (shape["run"], shape["data"], shape["latent"]) == (1, 2, 4)


def test_cpu_devices_are_used_only_when_asked_for():
    assert choose_mesh(MeshConfig(), NEED, jax.devices()).mesh.size == 1
    assert choose_mesh(MeshConfig(latent=4), NEED, jax.devices()).mesh.shape["data"] == 2


@pytest.mark.parametrize(
    ("config", "need", "words"),
    [
        (MeshConfig(data=3, latent=2), NEED, "needs 6 devices, found 8"),
        (MeshConfig(data=16), NEED, "mesh.data = 16 does not divide the 8 devices; choose a factor of 8"),
        (MeshConfig(latent=3), NEED, "mesh.latent = 3 does not divide the 8 devices"),
        (MeshConfig(run=8, data=2), dataclasses.replace(NEED, members=8), "mesh.data = 2 does not divide the 1 dev"),
        (MeshConfig(latent=8, data=1), Need(64, 1001, 256), "the nearest are 1000 or 1008"),
        (MeshConfig(data=8, latent=1), Need(64, 1024, 100), "the nearest are 96 or 104"),
        (MeshConfig(data=2, latent=4, zero=True), Need(64, 1020, 256), "the nearest are 1016 or 1024"),
        (MeshConfig(), Need(64, 1023, 255), "take d_sae = 1016 or 1024"),
        (MeshConfig(run=3), dataclasses.replace(NEED, members=6), "multiple of 3"),
        (
            MeshConfig(run=4),
            dataclasses.replace(NEED, members=6),
            "6 runs of this sweep cannot be spread over mesh.run",
        ),
        (MeshConfig(run=2), NEED, "one run, which is no sweep"),
    ],
)
def test_impossible_meshes_are_one_sentence(config, need, words):
    with pytest.raises(ConfigError, match=words):
        chosen(config, need)


def test_processes_with_unlike_numbers_of_devices_are_named():
    devices = [Chip(0), Chip(1), Chip(2, process_index=1), Chip(3, process_index=1), Chip(4, process_index=2)]
    with pytest.raises(ConfigError, match="process 2 has 1 and process 0 has 2"):
        choose_mesh(MeshConfig(), NEED, devices)


def test_mesh_in_force_is_seen_by_traces_and_only_inside():
    assert sizes() == {}
    with use(make_mesh(2, 4)):
        assert jax.eval_shape(lambda: [sizes()] and jax.numpy.zeros(len(sizes()))).shape == (2,)
        assert sizes() == {"data": 2, "latent": 4}
    assert sizes() == {}
