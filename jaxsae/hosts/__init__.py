"""Models that are looked into: reading and replacing their activations.

    host = jaxsae.hosts.load("smollm2-135m")
    run = jax.jit(lambda params, tokens: host.model.run(params, tokens, taps=["blocks.9.hook_resid_post"]))

Site names are described in `jaxsae.hosts.sites`.
"""

from jaxsae.hosts.choose import HostMesh, choose_mesh
from jaxsae.hosts.forward import Run
from jaxsae.hosts.host import Host
from jaxsae.hosts.llama import Llama
from jaxsae.hosts.loss import cross_entropy
from jaxsae.hosts.placement import place
from jaxsae.hosts.registry import fetch, load, names
from jaxsae.hosts.tokenizer import Tokenizer

__all__ = [
    "Host",
    "HostMesh",
    "Llama",
    "Run",
    "Tokenizer",
    "choose_mesh",
    "cross_entropy",
    "fetch",
    "load",
    "names",
    "place",
]
