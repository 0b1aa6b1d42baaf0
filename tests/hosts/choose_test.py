"""Which mesh a host gets: weights cut no further than need be, windows over the rest, and refusals in one sentence."""

import jax
import pytest

from jaxsae.errors import ConfigError
from jaxsae.hosts import HostMesh, Llama, choose_mesh
from jaxsae.testing.tiny_host import tiny_host

#: Shapes of Llama 3.1 8B (Grattafiori et al., arXiv:2407.21783, table 3): 8.03 billion parameters.
BIG = Llama(n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8, d_head=128, d_mlp=14336, vocab_size=128256, tied=False)
TINY = tiny_host().model  # 4 heads, 2 KV heads, MLP of 64, vocabulary of 257


def shape(model, dtype="bfloat16", batch=16, count=8, memory=16e9, **config):
    chosen = choose_mesh(HostMesh(**config), model, dtype, batch, jax.devices()[:count], memory)
    return (chosen.mesh.shape["data"], chosen.mesh.shape["latent"]), chosen.reason


@pytest.mark.parametrize(
    ("dtype", "memory", "expected"),
    [
        ("bfloat16", 96e9, (8, 1)),  # 16.1 GB fit on each
        ("bfloat16", 16e9, (4, 2)),  # 8.0 of 16 GB
        ("float32", 16e9, (2, 4)),  # 8.0 of 16 GB
        ("float32", 8e9, (1, 8)),  # 4.0 of 8 GB
    ],
)
def test_weights_are_cut_no_further_than_they_must(dtype, memory, expected):
    assert shape(BIG, dtype, memory=memory)[0] == expected


def test_the_reason_names_weights_and_memory():
    assert shape(BIG)[1] == "8.03 GB of weights on a device of 16 GB"
    assert "too much, but no mesh of 8 devices cuts them further" in shape(BIG, memory=1e9)[1]


def test_several_cpu_devices_are_used_only_where_asked_for():
    assert choose_mesh(HostMesh(), BIG, "float32", 16).mesh.size == 1
    assert dict(choose_mesh(HostMesh(latent=4), BIG, "float32", 16).mesh.shape) == {"run": 1, "data": 2, "latent": 4}
    assert dict(choose_mesh(HostMesh(data=2), BIG, "float32", 16).mesh.shape) == {"run": 1, "data": 2, "latent": 4}


def test_devices_that_the_batch_does_not_divide_by_are_idle_and_it_is_said():
    found, reason = shape(TINY, batch=6)
    assert found == (2, 1)
    assert "6 devices are idle, a batch of 6 does not divide by 8" in reason


def test_what_is_left_whole_is_said():
    found, reason = shape(TINY, latent=4)
    assert found == (2, 4)
    assert reason.endswith("whole on each device, as they do not divide by 4: 2 KV heads, vocabulary of 257")


@pytest.mark.parametrize(
    ("config", "count", "message"),
    [
        ({"latent": 3}, 6, "neither the 4 heads nor the MLP of 64 units .* mesh.latent = 3 devices; expected 1 or 2$"),
        ({"data": 2, "latent": 2}, 8, "data=2 x latent=2 needs 4 devices, found 8"),
        ({"latent": 3}, 8, "latent=3 needs 3 devices, found 8"),
        ({"latent": 2}, 1, "latent=2 needs 2 devices, found 1"),
        ({"data": 3}, 3, "batch_size = 16 windows .* mesh.data = 3 devices; .* the nearest are 15 or 18"),
    ],
)
def test_impossible_meshes_are_refused(config, count, message):
    with pytest.raises(ConfigError, match=message):
        shape(TINY, count=count, **config)


def test_numbers_of_devices_are_positive():
    with pytest.raises(ConfigError, match=r"mesh\.latent.* above 0, found 0"):
        HostMesh(latent=0)
