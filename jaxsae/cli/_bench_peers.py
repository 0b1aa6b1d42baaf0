"""One training step of each peer at a given shape, in a process of its own, on the CPU or on a GPU.

torch's and XLA's thread pools each take all cores and spin for a while after work, so that in one process either slows
the other down; apart, and asked in turn, whoever waits costs nothing.  `python -m jaxsae.cli._bench_peers NAME SIZES`
prints `{"ready": ...}` or `{"error": ...}`, then answers every line it reads with the seconds one more step took.

On a GPU all of them may use TF32 in float32 products, as jax does; sparsify computes its forward pass in bf16 there by
itself.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from jaxsae.cli._bench_shapes import Shape
from jaxsae.errors import ConfigError, closest


def sparsify(shape: Shape, x: Any) -> Callable[[], None]:
    """eai-sparsify: its coder and its trainer's sequence with `optimizer="adam"`, loss FVU, unit decoder norm."""
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=shape.d_sae, k=shape.k)
    coder = SparseCoder(shape.d_in, config, device=x.device, dtype=torch.float32)
    adam = torch.optim.Adam(coder.parameters(), lr=2e-4 / (shape.d_sae / 2**14) ** 0.5)
    silent = torch.zeros(shape.d_sae, dtype=torch.long, device=x.device)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=None)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            silent.add_(len(x))
            silent[out.latent_indices.flatten()] = 0

    return step


def sae_lens(shape: Shape, x: Any) -> Callable[[], None]:
    """SAELens: `SAETrainer.step` on a `topk` training coder with its defaults (AuxK, clipping, Adam)."""
    from sae_lens.config import LoggingConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer, SAETrainerConfig

    device = str(x.device)
    coder = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k, device=device))
    config = SAETrainerConfig(
        total_training_samples=10**6 * shape.batch_size,
        train_batch_size_samples=shape.batch_size,
        device=device,
        lr_end=3e-4,  # its runner fills this in; the schedule is constant by default
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, coder, iter([]))

    def step() -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def dictionary_learning(shape: Shape, x: Any) -> Callable[[], None]:
    """dictionary_learning: `TopKTrainer.update` with its defaults (AuxK, clipping, Adam)."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    place = {"layer": 0, "lm_name": "none", "seed": 0, "device": str(x.device)}
    trainer = TopKTrainer(10**6, shape.d_in, shape.d_sae, shape.k, **place)
    steps = iter(range(10**6))
    return lambda: trainer.update(next(steps), x)


#: Peer -> (module it needs, package to install, its step).
PEERS: dict[str, tuple[str, str, Callable]] = {
    "sparsify": ("sparsify", "eai-sparsify", sparsify),
    "sae_lens": ("sae_lens", "sae-lens", sae_lens),
    "dictionary_learning": ("dictionary_learning", "dictionary-learning", dictionary_learning),
}


class Peer:
    """A peer under way in its own process.

    Args:
        name: a key of `PEERS`.
        shape: sizes of the step.
        python: the interpreter that has the peer; ours if empty.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: there is no such peer, or it is not installed there.
    """

    def __init__(self, name: str, shape: Shape, python: str = "", device: str = "cpu"):
        if name not in PEERS:
            raise ConfigError(f"bench: no peer {name!r}{closest(name, PEERS)}")
        self.name, sizes = name, json.dumps(dataclasses.asdict(shape))
        settings = {**os.environ, "OMP_WAIT_POLICY": "passive", "JAX_PLATFORMS": "cpu"}
        if device == "cpu":  # sparsify's Triton kernels need a GPU
            settings |= {"CUDA_VISIBLE_DEVICES": "", "SPARSIFY_DISABLE_TRITON": "1"}
        command = [python or sys.executable, "-m", "jaxsae.cli._bench_peers", name, sizes, device]
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            self.process = subprocess.Popen(command, text=True, env=settings, **pipe)  # type: ignore[call-overload]
        except OSError as e:
            raise ConfigError(f"bench: peers_python {command[0]!r} cannot be run: {e.strerror or e}") from e
        self.about: dict[str, Any] = {}

    def ready(self) -> None:
        """Waits until the peer is imported and built; several may do that at once."""
        self.about = self._answer()["ready"]

    def _answer(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{"):  # anything else is the peer talking
                answer = json.loads(line)
                if "error" in answer:
                    raise ConfigError(answer["error"])
                return answer
        raise ConfigError(f"bench: the process of peer {self.name!r} ended early (status {self.process.wait()})")

    def step(self) -> float:
        """Does one more training step and returns the seconds it took."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its answer says so
            print("step", file=self.process.stdin, flush=True)
        answer = self._answer()
        self.about["peak_bytes"] = answer["peak_bytes"]
        return answer["seconds"]

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def serve(name: str, shape: Shape, device: str) -> None:
    """The peer's side: see the module docstring."""
    module, package, make = PEERS[name]
    if importlib.util.find_spec(module) is None or importlib.util.find_spec("torch") is None:
        _say(error=f"bench: peer {name!r} is not installed; `pip install {package}` or leave it out of --peers")
        return
    import resource

    import numpy as np
    import torch

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((shape.batch_size, shape.d_in), np.float32))
    step, wait = make(shape, x.to(device)), torch.cuda.synchronize if device == "cuda" else lambda: None
    versions = {p: importlib.metadata.version(p) for p in (package, "torch")}
    _say(ready={"versions": versions, "threads": torch.get_num_threads()})
    for _ in sys.stdin:
        try:
            wait()
            start = time.perf_counter()
            step()
            wait()
            seconds = time.perf_counter() - start
        except RuntimeError as e:  # out of memory, as a rule
            _say(error=f"bench: peer {name!r} failed: {' '.join(str(e).split())[:160]}")
            return
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _say(seconds=seconds, peak_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else peak)


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Shape(**json.loads(sys.argv[2])), sys.argv[3])
