"""Where hosts come from: names that bring a model along, files, folders, and a hub."""

import os
import pathlib
import re
from typing import Any

from jaxsae import packages
from jaxsae.errors import HostError, closest
from jaxsae.hosts.gguf_file import load_gguf
from jaxsae.hosts.hf_folder import load_folder
from jaxsae.hosts.host import Host
from jaxsae.hosts.placement import MeshFor
from jaxsae.hosts.weights import check_dtype

#: Hosts known by name, and the package file that carries each.
_NAMED = {"smollm2-135m": packages.SMOLLM2_135M}
_HUB = "hf://"
_HUB_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def names() -> tuple[str, ...]:
    """Hosts that can be fetched by name."""
    return tuple(_NAMED)


def fetch(name: str | os.PathLike) -> pathlib.Path:
    """The local file or folder of a host, brought here first if need be.

    Args:
        name: a name from `names()`, a path, or a hub name: `owner/name` or `hf://owner/name`, with `@revision` if
            wanted.

    Raises:
        HostError: nothing of that name.
        DataError: a package file could not be fetched.
    """
    text = os.fspath(name)
    if text in _NAMED:
        return packages.package_file(_NAMED[text])
    path = pathlib.Path(text).expanduser()
    if not text.startswith(_HUB) and path.exists():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", text.removeprefix(_HUB)):
        return _from_hub(text.removeprefix(_HUB))
    raise HostError(
        f"no host is called {text!r}, and no file or folder has that path{closest(text, _NAMED)}; expected a name, a "
        ".gguf file, a Hugging Face folder or hf://owner/name"
    )


def load(name: str | os.PathLike, dtype: Any = "float32", mesh: MeshFor = None) -> Host:
    """A host model with its weights on the default device, or spread over a mesh.

    Args:
        name: as for `fetch`: `"smollm2-135m"`, a .gguf file, a Hugging Face folder, or a hub name.
        dtype: of weights and activations: "float32" or "bfloat16".
        mesh: the devices that its weights are spread over (see `jaxsae.hosts.placement`), or a function model -> mesh;
            None for the default device.

    Raises:
        HostError: nothing of that name, a damaged file, or an architecture that jaxsae does not run.
        DataError: a package file could not be fetched.

    Example:
        >>> host = load("smollm2-135m")  # doctest: +SKIP
    """
    dtype = check_dtype(dtype)
    path = fetch(name)
    called = os.fspath(name) if not pathlib.Path(os.fspath(name)).expanduser().exists() else None
    if path.is_dir():
        return load_folder(path, dtype, called, mesh)
    if path.suffix == ".gguf":
        return load_gguf(path, dtype, called, mesh)
    raise HostError(f"{path} is neither a .gguf file nor a Hugging Face folder")


def _from_hub(repository: str) -> pathlib.Path:
    """A snapshot of a hub repository, in the hub client's own cache; weights and tokenizer only."""
    import huggingface_hub

    owner_name, _, revision = repository.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            owner_name, revision=revision or None, allow_patterns=list(_HUB_FILES)
        )
    except Exception as e:  # the client raises errors of its own, of its transport, and of the system
        reason = " ".join(str(e).split())[:200]
        raise HostError(
            f"{owner_name!r} could not be fetched from the Hugging Face hub ({type(e).__name__}: {reason}); check the "
            "name and the network, or give the path of a downloaded folder"
        ) from e
    return pathlib.Path(folder)
