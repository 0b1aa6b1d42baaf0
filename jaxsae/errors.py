"""Errors a user is meant to read: what was expected, what arrived, what to do.

Everything jaxsae raises on purpose is a `JaxsaeError`; the command line prints its message as one
sentence and exits with status 1.  A traceback therefore always means a bug of ours.
"""


class JaxsaeError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(JaxsaeError, ValueError):
    """A configuration, argument or combination that cannot work."""


class ConfigWarning(UserWarning):
    """A configuration that can run but is known to learn little; the message gives the figure."""


class DataError(JaxsaeError):
    """Text, activations or a cache that is missing, damaged or of another origin than expected."""


class CheckpointError(JaxsaeError):
    """A checkpoint or run directory that is missing, damaged, or belongs to another configuration."""


class FormatError(JaxsaeError):
    """A file of somebody else's format (or of ours) that cannot be read or written."""


class HostError(JaxsaeError):
    """A host model, tokenizer or site that cannot be had."""


class PeerLost(JaxsaeError):
    """Another process of the same run ended or cannot be reached.

    Attributes:
        status: what a command should exit with (EX_TEMPFAIL): starting the same command again continues the run.
    """

    status = 75


def closest(name: str, options) -> str:
    """A hint such as `; did you mean 'k'?`, or the list of options when nothing is near.

    Example:
        >>> closest("lr_warmup", ["lr", "lr_warm_up_steps"])
        "; did you mean 'lr_warm_up_steps'?"
    """
    import difflib

    options = sorted(map(str, options))
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"; possible: {shown}" if options else ""
