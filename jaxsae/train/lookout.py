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
        self.clock = Clock(policy.stall_share)
        self._spikes: dict[str, Spikes] = {}
        self._seen = 0

    def spike(self, record: Record) -> str:
        """A sentence if this record's loss is a spike, of a sweep's for each run; each record is looked at once."""
        if record["step"] == self._seen or record["loss"] is None:
            return ""
        self._seen = record["step"]
        members = record.get("members")
        if members is None:
            return self._look("", record["loss"])
        going_on = [i for i, alive in enumerate(members["alive"]) if alive]
        return "; ".join(filter(None, (self._look(f"run {i}: ", members["loss"][i]) for i in going_on)))

    def _look(self, name: str, loss: float | None) -> str:
        spikes = self._spikes.setdefault(name, Spikes(self.policy.spike_factor))
        found = "" if loss is None else spikes.look(loss)
        return name + found if found else ""
