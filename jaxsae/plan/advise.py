"""What to change when a step does not fit: each suggestion is compiled before it is made."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from jaxsae import parallel
from jaxsae.errors import ConfigError
from jaxsae.optim import halved
from jaxsae.parallel import MeshConfig
from jaxsae.plan.setting import Compile, Setting, mesh_text, need_of, state_bytes
from jaxsae.plan.shapes import larger
from jaxsae.plan.topology import Target, open_target

#: Larger slices that are compiled, each of twice the chips of the one before.
MOST_SLICES = 3


@dataclass(frozen=True)
class Advice:
    """A change, whether the step fits with it, and the memory it then takes (None if the compiler does not say)."""

    change: str
    fits: bool
    peak: int | None


def advise(
    setting: Setting,
    target: Target,
    compile_step: Compile,
    tell: Callable[[str], None] = lambda _: None,
    opener: Callable[[str], Target] = open_target,
) -> tuple[Advice, ...]:
    """Every change that applies, compiled alone; where none of them is enough, several together, then larger slices.

    Args:
        setting: that does not fit.
        target: where it does not fit.
        compile_step: what compiles a setting.
        tell: hears what is being compiled.
        opener: of topologies.
    """

    def tried(settings: Iterator[tuple[str, Setting]]) -> Iterator[Advice]:
        for change, other in settings:
            tell(f"it does not fit; compiling with {change} ...")
            measured = compile_step(other)
            yield Advice(change, bool(measured.fits), measured.peak)

    found = list(tried(changes(setting)))
    if not any(a.fits for a in found):
        found += tried(together(setting))
    if not any(a.fits for a in found):
        for advice in tried(slices(setting, target, opener)):
            found.append(advice)
            if advice.fits:
                break
    return tuple(found)


def changes(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """Each change that applies, alone."""
    for change in (_latents_on_all, _latents_on_more, _halved_moments, _half_the_batch, _zero, _halved_products):
        yield from change(setting)


def together(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """All the changes that leave mesh and products as they are, at once."""
    names: list[str] = []
    for change in (_halved_moments, _half_the_batch, _zero):
        name, setting = next(change(setting), ("", setting))
        names += [name] if name else []
    if len(names) > 1:
        yield ", ".join(names[:-1]) + " and " + names[-1], setting


def slices(setting: Setting, target: Target, opener: Callable[[str], Target]) -> Iterator[tuple[str, Setting]]:
    """Larger slices of the same chip whose memory holds at least the state, each with the mesh chosen for it."""
    kind, _, shape = target.name.partition(":")
    if not shape:
        return
    for bigger in itertools.islice(larger(kind, shape, state_bytes(setting) / target.chip.memory), MOST_SLICES):
        need, config = need_of(setting.recipe, setting.rows), MeshConfig(zero=setting.zero)
        try:
            found = opener(f"{kind}:{bigger}")
            mesh = parallel.choose_mesh(config, need, found.devices, found.chip.memory).mesh
        except ConfigError:  # libtpu does not open it, or latents or rows do not divide by so many devices
            continue
        limit = found.limit(mesh.size)
        yield f"{found.name} (mesh {mesh_text(mesh.shape)})", replace(setting, mesh=mesh, limit=limit)


def _latents_on_all(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """In place of a device for each run of a sweep."""
    run, devices = setting.mesh.shape["run"], setting.mesh.size
    if run > 1 and setting.recipe.d_sae % devices == 0:
        yield _on_mesh(setting, 1, devices)


def _latents_on_more(setting: Setting) -> Iterator[tuple[str, Setting]]:
    run, data, latent = (setting.mesh.shape[axis] for axis in ("run", "data", "latent"))
    parts = data * latent if setting.zero else 2 * latent
    if run == 1 and data % 2 == 0 and setting.recipe.d_sae % (2 * latent) == 0 == setting.recipe.d_sae % parts:
        yield _on_mesh(setting, data // 2, 2 * latent)


def _halved_moments(setting: Setting) -> Iterator[tuple[str, Setting]]:
    half = halved(setting.method.optimizer)
    if half is not None:
        yield "moments: bfloat16", setting.with_method(optimizer=half)


def _half_the_batch(setting: Setting) -> Iterator[tuple[str, Setting]]:
    rows = setting.rows // 2
    if setting.rows % (2 * setting.mesh.shape["data"]) == 0:
        yield f"a batch of {rows:,} rows", replace(setting, rows=rows)


def _zero(setting: Setting) -> Iterator[tuple[str, Setting]]:
    data, latent = setting.mesh.shape["data"], setting.mesh.shape["latent"]
    if data > 1 and not setting.zero and setting.recipe.d_sae % (data * latent) == 0:
        yield "mesh.zero: true", replace(setting, zero=True)


def _halved_products(setting: Setting) -> Iterator[tuple[str, Setting]]:
    precision = setting.method.precision
    if precision.compute == "float32":
        yield "bfloat16: true", setting.with_method(precision=replace(precision, compute="bfloat16"))


def _on_mesh(setting: Setting, data: int, latent: int) -> tuple[str, Setting]:
    mesh = parallel.make_mesh(data, latent, list(setting.mesh.devices.flat))
    return f"mesh {mesh_text(mesh.shape)}", replace(setting, mesh=mesh)
