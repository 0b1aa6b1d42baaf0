import jax
import jax.numpy as jnp
import pytest

from jaxsae.sae import Meta, make_sae
from jaxsae.testing.tiny_cache import tiny_cache
from jaxsae.testing.tiny_host import tiny_host

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="session")
def tiny():
    return tiny_host(n_layers=2)


@pytest.fixture(scope="session")
def cache(tiny, tmp_path_factory):
    return tiny_cache(tmp_path_factory.mktemp("cache") / "acts", tiny, [SITE])


@pytest.fixture(scope="session")
def coder():
    W = jax.random.normal(jax.random.key(3), (32, 96)) / 6
    params = {"W_enc": W, "b_enc": jnp.zeros(96), "W_dec": W.T, "b_dec": jnp.zeros(32)}
    return make_sae(params, k=6, meta=Meta(site=SITE))
