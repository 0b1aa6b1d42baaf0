"""Compiled programs kept for the next session: a run that is started again begins at once."""

import os

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxsae.errors import ConfigError

#: Programs that compile faster are not worth a file.
LEAST_SECONDS = 0.5


def keep_compiled(folder: str | None, least_seconds: float = LEAST_SECONDS) -> None:
    """Lets jax keep compiled programs in a folder, or behind a URL such as gs://bucket/cache.

    Affects the whole process.  The key of a program is everything that it depends on: jax's version, the devices, the
    program itself; so runs may share a folder.

    Args:
        folder: where; None leaves jax's own setting (JAX_COMPILATION_CACHE_DIR) as it is.
        least_seconds: programs that compile faster are not kept.

    Raises:
        ConfigError: jax opens no URL of this kind.
    """
    if folder is None:
        return
    folder = _known(folder.removeprefix("file://"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    compilation_cache.reset_cache()  # jax looks at the setting once, before its first compilation


def _known(folder: str) -> str:
    """A folder's whole path, or a URL that jax can open: at any other it would fail when it first compiles."""
    if "://" not in folder:
        return os.path.abspath(os.path.expanduser(folder))
    from etils import epath  # jax opens URLs with it; Orbax brings it along

    try:
        epath.Path(folder)
    except KeyError as e:
        raise ConfigError(
            f"config key 'compilation_cache': expected a folder, or a URL such as gs://bucket/cache, found {folder!r}"
        ) from e
    return folder
