"""One training step of each peer at a given shape, in a process of its own, on the CPU or on a GPU.

torch's and XLA's thread pools each take all cores and spin for a while after work, so that in one process either slows
the other down; apart, and asked in turn, whoever waits costs nothing.  `python -m jaxsae.cli._bench_peers NAME METHOD
SIZES DEVICE` prints `{"ready": ...}` or `{"error": ...}`, then answers every line it reads with the seconds that one
more step took.

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
from jaxsae.cli._bench_timing import peak_of_process
from jaxsae.errors import ConfigError, closest

#: Methods measured, and the sizes of Matryoshka's groups as shares of the latents.
METHODS = ("topk", "batch_topk", "matryoshka")
FRACTIONS = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)


def sparsify(method: str, shape: Shape, x: Any) -> Callable[[], None]:
    """eai-sparsify, which has `topk` only: its coder and its trainer's sequence with `optimizer="adam"`, loss FVU."""
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


def sae_lens(method: str, shape: Shape, x: Any) -> Callable[[], None]:
    """SAELens: `SAETrainer.step` on a training coder of the method with its defaults (AuxK, clipping, Adam)."""
    import sae_lens.saes as coders
    from sae_lens.config import LoggingConfig
    from sae_lens.training.sae_trainer import SAETrainer, SAETrainerConfig

    device = str(x.device)
    name = {"topk": "TopK", "batch_topk": "BatchTopK", "matryoshka": "MatryoshkaBatchTopK"}[method]
    widths = [round(shape.d_sae * sum(FRACTIONS[: i + 1])) for i in range(len(FRACTIONS))]
    own: dict[str, Any] = {"matryoshka_widths": widths} if method == "matryoshka" else {}
    sizes = {"d_in": shape.d_in, "d_sae": shape.d_sae, "k": shape.k}
    settings = getattr(coders, f"{name}TrainingSAEConfig")(**sizes, device=device, **own)
    coder = getattr(coders, f"{name}TrainingSAE")(settings)
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


def dictionary_learning(method: str, shape: Shape, x: Any) -> Callable[[], None]:
    """dictionary_learning: `update` of the method's trainer with its defaults (AuxK, clipping, Adam)."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainers = {"topk": TopKTrainer, "batch_topk": BatchTopKTrainer, "matryoshka": MatryoshkaBatchTopKTrainer}
    own: dict[str, Any] = {"group_fractions": list(FRACTIONS)} if method == "matryoshka" else {}
    place = {"layer": 0, "lm_name": "none", "seed": 0, "device": str(x.device)}
    trainer = trainers[method](10**6, shape.d_in, shape.d_sae, shape.k, **place, **own)
    steps = iter(range(10**6))
    return lambda: trainer.update(next(steps), x)


#: Peer -> (module it needs, package to install, its step, methods it has).
PEERS: dict[str, tuple[str, str, Callable, tuple[str, ...]]] = {
    "sparsify": ("sparsify", "eai-sparsify", sparsify, ("topk",)),
    "sae_lens": ("sae_lens", "sae-lens", sae_lens, METHODS),
    "dictionary_learning": ("dictionary_learning", "dictionary-learning", dictionary_learning, METHODS),
}


def peers_of(method: str) -> tuple[str, ...]:
    """The peers that have a method.

    Example:
        >>> peers_of("batch_topk")
        ('sae_lens', 'dictionary_learning')
    """
    return tuple(name for name, (*_, methods) in PEERS.items() if method in methods)


class Peer:
    """A peer under way in its own process.

    Args:
        name: a key of `PEERS`.
        shape: sizes of the step.
        python: the interpreter that has the peer; ours if empty.
        device: "cpu" or "cuda".
        method: one of `METHODS`.

    Raises:
        ConfigError: there is no such peer, it lacks the method, or it is not installed there.
    """

    def __init__(self, name: str, shape: Shape, python: str = "", device: str = "cpu", method: str = "topk"):
        if name not in PEERS:
            raise ConfigError(f"bench: no peer {name!r}{closest(name, PEERS)}")
        if name not in peers_of(method):
            raise ConfigError(f"bench: peer {name!r} has no {method}; those that have: {', '.join(peers_of(method))}")
        self.name, sizes = name, json.dumps(dataclasses.asdict(shape))
        settings = {**os.environ, "OMP_WAIT_POLICY": "passive", "JAX_PLATFORMS": "cpu"}
        if device == "cpu":  # sparsify's Triton kernels need a GPU
            settings |= {"CUDA_VISIBLE_DEVICES": "", "SPARSIFY_DISABLE_TRITON": "1"}
        command = [python or sys.executable, "-m", "jaxsae.cli._bench_peers", name, method, sizes, device]
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


def serve(name: str, method: str, shape: Shape, device: str) -> None:
    """The peer's side: see the module docstring."""
    module, package, make, _ = PEERS[name]
    if importlib.util.find_spec(module) is None or importlib.util.find_spec("torch") is None:
        _say(error=f"bench: peer {name!r} is not installed; `pip install {package}` or leave it out of --peers")
        return
    import numpy as np
    import torch

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((shape.batch_size, shape.d_in), np.float32))
    step, wait = make(method, shape, x.to(device)), torch.cuda.synchronize if device == "cuda" else lambda: None
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
        peak = peak_of_process()
        _say(seconds=seconds, peak_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else peak)


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], Shape(**json.loads(sys.argv[3])), sys.argv[4])
