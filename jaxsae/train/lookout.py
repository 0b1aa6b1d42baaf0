"""What a loop looks out for at every turn: stalls, spikes, and the steps to be traced."""

from jaxsae.train.config import WatchPolicy
from jaxsae.train.logs import Record
from jaxsae.train.spikes import Spikes
from jaxsae.train.stalls import Clock
from jaxsae.train.trace import Trace


class Lookout:
    """The watchers of one session of a run.

    Args:
        policy: what is told.
        trace: of chosen steps.
    """

    def __init__(self, policy: WatchPolicy, trace: Trace):
        self.policy, self.trace = policy, trace
        self.clock, self._spikes = Clock(policy.stall_share), Spikes(policy.spike_factor)
        self._seen = 0

    def spike(self, record: Record) -> str:
        """A sentence if this record's loss is a spike; each record is looked at once."""
        if record["step"] == self._seen or record["loss"] is None:
            return ""
        self._seen = record["step"]
        return self._spikes.look(record["loss"])
