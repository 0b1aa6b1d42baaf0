"""Without torch the bridge says what to install, and `import jaxsae` never asks for it."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

import jaxsae.torch as bridge
from jaxsae.errors import ConfigError


def test_absent_torch_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (bridge.to_module, bridge.from_module, bridge.to_torch, bridge.from_torch):
        with pytest.raises(ConfigError, match=r'pip install "jaxsae\[torch\]"'):
            call(jnp.zeros(2))


def test_importing_jaxsae_does_not_import_torch():
    code = "import sys, jaxsae, jaxsae.torch; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
