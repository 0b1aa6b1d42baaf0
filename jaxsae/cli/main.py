"""The command line: one word picks a command, its dataclass is the parser, a YAML file may give the defaults."""

import dataclasses
import importlib
import os
import sys
import traceback
from typing import Annotated, Any, Union, get_type_hints

from jaxsae.config import from_dict, read_file, to_dict
from jaxsae.errors import ConfigError, JaxsaeError, closest

#: Command -> (module:class, one line of help).  A command is a frozen dataclass with `run() -> dict`.
COMMANDS = {
    "quickstart": ("jaxsae.cli.quickstart:Quickstart", "the whole job on a real language model, no configuration"),
    "harvest": ("jaxsae.cli.harvest:Harvest", "run a host model over text and cache its activations"),
    "train": ("jaxsae.cli.train:Train", "train a dictionary on a cache"),
    "eval": ("jaxsae.cli.eval:Eval", "reconstruction metrics and loss recovered of a dictionary"),
    "report": ("jaxsae.cli.report:Report", "one HTML page to look at a run or a dictionary"),
    "convert": (
        "jaxsae.cli.convert:Convert",
        "read other libraries' dictionaries, write them, and check what was written",
    ),
    "plan": ("jaxsae.cli.plan:Plan", "whether a run fits a topology and what it costs, without the devices"),
    "bench methods": ("jaxsae.cli.bench_methods:BenchMethods", "what a step of every method costs, relative to topk"),
    "bench kernels": (
        "jaxsae.cli.bench_kernels:BenchKernels",
        "how fast each op is, in every implementation that runs here",
    ),
    "bench train": ("jaxsae.cli.bench_train:BenchTrain", "how fast a training step is, beside its floor and its peers"),
    "bench fleet": (
        "jaxsae.cli.bench_fleet:BenchFleet",
        "how fast many runs as one program are, beside as many single steps",
    ),
    "bench stream": ("jaxsae.cli.bench_stream:BenchStream", "how fast batches come out of a cache"),
    "science frontier": (
        "jaxsae.cli.science_frontier:ScienceFrontier",
        "families and baselines on a real model: FVU and loss recovered against L0",
    ),
    "science": ("jaxsae.cli.science:Science", "the headline claim of every method's paper, in miniature"),
    "doctor": ("jaxsae.cli.doctor:Doctor", "devices, versions, caches, and what is missing for which feature"),
}
#: Those that run on several processes.
SEVERAL = ("harvest", "train", "eval", "doctor")


def usage() -> str:
    """The page `jaxsae --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxsae COMMAND [--config FILE.yaml] [options]",
            "",
            "Train, evaluate and use sparse autoencoders in JAX.",
            "",
            "commands:",
            *lines,
            "",
            "`jaxsae COMMAND --help` lists the options of a command.  --config FILE.yaml gives other defaults;",
            "options on the command line win over it.",
            "",
            "harvest, train, eval and doctor run on several processes: the same command on each, recognised by",
            "itself on Cloud TPU, GKE and Slurm; elsewhere with --coordinator HOST:PORT --process-count N",
            "--process-id I, or $JAXSAE_COORDINATOR, $JAXSAE_PROCESS_COUNT and $JAXSAE_PROCESS_ID.",
        ]
    )


def main(args: list[str] | None = None) -> None:
    """Entry point of the `jaxsae` script.

    Exits with 0, 1 (a named error), 2 (a wrong call), 75 (another process was lost), 130 or 143 (Ctrl-C or SIGTERM).
    """
    from jaxsae.parallel.lost import end, joined, lost, peer_lost

    args = sys.argv[1:] if args is None else args
    try:
        status = end(_dispatch(args))
    except JaxsaeError as e:
        status = end(getattr(e, "status", 1), f"jaxsae: error: {e}")
    except KeyboardInterrupt:
        status = end(130, "jaxsae: interrupted; the same command continues where it can")
    except BrokenPipeError:  # e.g. `jaxsae doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as e:
        if lost(e):
            status = end(75, f"jaxsae: error: {peer_lost(e)}")
        elif isinstance(e, OSError) and e.filename is not None:  # no bug: a file that cannot be read or written
            status = end(1, f"jaxsae: error: {str(e.filename)!r}: {e.strerror}; check the path, space and permissions")
        elif joined():
            status = end(1, traceback.format_exc())
        else:
            raise
    sys.stdout.flush()
    sys.exit(status)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        import jaxsae

        print(f"jaxsae {jaxsae.__version__}")
        return 0
    words = 2 if " ".join(args[:2]) in COMMANDS else 1
    name, rest = " ".join(args[:words]), args[words:]
    if name not in COMMANDS:
        groups = sorted(c for c in COMMANDS if c.startswith(name + " "))
        hint = f"; possible: {', '.join(groups)}" if groups else closest(name, COMMANDS)
        print(f"jaxsae: error: no command {name!r}{hint}", file=sys.stderr)
        return 2
    place, rest = _take_processes(rest)
    command = parse(name, rest)
    _join(name, command, place)
    command.run()
    return 0


def _join(name: str, command: Any, place: dict[str, Any]) -> None:
    """Makes this process one of several, where it is started as one."""
    from jaxsae import parallel
    from jaxsae.parallel.start import where

    if name in SEVERAL:
        parallel.start(**place, facts={"command": name, "config": to_dict(command)})
    elif (found := where(**place)[0]).count > 1:
        raise ConfigError(
            f"`jaxsae {name}` runs in one process, but this is one of {found.count} (told by {found.told_by}); start "
            "it once, on one machine"
        )


def parse(name: str, args: list[str]) -> Any:
    """The command object that the arguments describe.

    Raises:
        ConfigError: a config file that does not fit the command.
        SystemExit: from the parser, on --help (0) or wrong options (2).
    """
    import tyro

    module, cls_name = COMMANDS[name][0].split(":")
    cls = with_choices(getattr(importlib.import_module(module), cls_name))
    path, args = _take_config(args)
    defaults = {} if path is None else {"default": from_dict(_untagged(read_file(path), cls, path), cls)}
    return tyro.cli(cls, prog=f"jaxsae {name}", args=args, **defaults)


def _untagged(data: dict, cls: type, path: str) -> dict:
    """A config file may carry the tag of what the command is made of, as the one in a run directory does."""
    from jaxsae.config import class_of

    tag = data.get("type")
    if tag is None:
        return data
    found = class_of(tag)
    if found is None or not issubclass(cls, found):
        raise ConfigError(f"config file {path!r} is of type {tag!r}, which is not what this command takes")
    return {k: v for k, v in data.items() if k != "type"}


def _take_config(args: list[str]) -> tuple[str | None, list[str]]:
    return _take("--config", "the path of a YAML file", args)


def _take_processes(args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What says which of several processes this is, for `parallel.start`."""
    coordinator, args = _take("--coordinator", "host:port of process 0", args)
    count, args = _take("--process-count", "a number", args)
    index, args = _take("--process-id", "a number", args)
    return {"coordinator": coordinator, "count": count, "index": index}, args


def _take(option: str, what: str, args: list[str]) -> tuple[str | None, list[str]]:
    """`--option VALUE` or `--option=VALUE`, taken out of the arguments."""
    for i, arg in enumerate(args):
        if arg == option:
            if i + 1 == len(args):
                raise ConfigError(f"{option} needs {what} after it")
            return args[i + 1], args[:i] + args[i + 2 :]
        if arg.startswith(f"{option}="):
            return arg.removeprefix(f"{option}="), args[:i] + args[i + 1 :]
    return None, args


def with_choices(cls: type) -> type:
    """The command with every field of type RecipeConfig open to all published methods, as sub-commands."""
    from jaxsae.recipes import RecipeConfig, configs

    fields = [f for f in dataclasses.fields(cls) if get_type_hints(cls)[f.name] is RecipeConfig]
    if not fields:
        return cls
    import tyro

    def named(name: str, config: type) -> Any:
        first_line = (config.__doc__ or "").split("\n")[0]
        return Annotated[config, tyro.conf.subcommand(name, description=first_line)]

    choice: Any = Union[tuple(named(name, config) for name, config in configs().items())]  # noqa: UP007 (a tuple of types)
    swapped = [(f.name, choice, f) for f in fields]
    opened = dataclasses.make_dataclass(cls.__name__, swapped, bases=(cls,), frozen=True)
    opened.__doc__, opened.__module__ = cls.__doc__, cls.__module__
    return opened
