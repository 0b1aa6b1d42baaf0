"""`jaxsae doctor`: what this machine has, and what is missing for which feature."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Optional package -> (what needs it, how to get it).
OPTIONAL = {
    "torch": ("reading and writing .pt files, the PyTorch bridge", 'pip install "jaxsae[torch]"'),
    "libtpu": ("running on TPU, and compiling for one ahead of time", 'pip install "jaxsae[tpu]"'),
    "sklearn": ("baselines (PCA, ICA, NMF, k-means)", 'pip install "jaxsae[science]"'),
    "tensorboardX": ("TensorBoard logs", 'pip install "jaxsae[tracking]"'),
    "wandb": ("Weights & Biases logs", 'pip install "jaxsae[tracking]"'),
    "datasets": ("Hugging Face datasets as text", 'pip install "jaxsae[datasets]"'),
    "pyarrow": ("parquet files as text", 'pip install "jaxsae[datasets]"'),
}
CORE: tuple[str, ...] = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorstore",
    "numpy",
    "safetensors",
    "tokenizers",
)
CORE += ("gguf", "huggingface_hub", "tyro", "rich")

#: Pallas kernels need this jax; older ones use the XLA implementations.
PALLAS_JAX = (0, 10)


@dataclass(frozen=True)
class Doctor:
    """Show devices, versions, cached files, and what is missing for which feature.

    Attributes:
        json_path: also write the findings to this file, as JSON.
    """

    json_path: Path | None = None

    def run(self) -> dict[str, Any]:
        """Prints the findings and returns them."""
        from jaxsae import parallel

        found = findings()
        if parallel.first():  # of several processes
            if self.json_path is not None:
                self.json_path.parent.mkdir(parents=True, exist_ok=True)
                self.json_path.write_text(json.dumps(found, indent=1) + "\n")
            _show(found)
        return found


def findings() -> dict[str, Any]:
    """Everything `doctor` reports, as plain values."""
    import jax

    import jaxsae

    versions = {"jaxsae": jaxsae.__version__, "python": platform.python_version()}
    versions |= {name: version for name in CORE if (version := _version(name))}
    return {
        "versions": versions,
        "devices": [{"kind": d.device_kind, "platform": d.platform} for d in jax.local_devices()],
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "files": _files(),
        "missing": {
            name: {"needed_for": why, "get_it_by": how}
            for name, (why, how) in OPTIONAL.items()
            if importlib.util.find_spec(name) is None
        },
        "pallas_kernels": _jax_version() >= PALLAS_JAX,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _jax_version() -> tuple[int, ...]:
    import jax

    return tuple(int(part) for part in jax.__version__.split(".")[:2])


def _memory_gb() -> float | None:
    from jaxsae import parallel

    found = parallel.machine_bytes()
    return None if found is None else round(found / 1e9, 1)


def _files() -> dict[str, Any]:
    """The folder of fetched files: what lies in it, and how much room is left."""
    from jaxsae import packages

    home = packages.home()
    lying = sorted(p for p in home.rglob("*") if p.is_file()) if home.is_dir() else []
    room = next(p for p in (home, *home.parents) if p.exists())
    return {
        "folder": str(home),
        "fetched": {str(p.relative_to(home)): p.stat().st_size for p in lying},
        "free_gb": round(shutil.disk_usage(room).free / 1e9, 1),
    }


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, title="jaxsae doctor")
    table.add_row("versions", ", ".join(f"{k} {v}" for k, v in found["versions"].items()))
    kinds = [d["kind"] for d in found["devices"]]
    table.add_row("devices", ", ".join(f"{kinds.count(k)} x {k}" for k in dict.fromkeys(kinds)))
    table.add_row("machine", f"{found['cpu_cores']} cores, {found['memory_gb']} GB of memory")
    files = found["files"]
    table.add_row("fetched files", f"{files['folder']} ({files['free_gb']} GB free)")
    for name, size in files["fetched"].items():
        table.add_row("", f"{name}, {size / 1e6:.0f} MB")
    if not found["pallas_kernels"]:
        table.add_row("kernels", "jax below 0.10: XLA implementations instead of Pallas kernels")
    for name, entry in found["missing"].items():
        table.add_row("missing", escape(f"{name}: {entry['needed_for']}; {entry['get_it_by']}"))
    Console().print(table)
