"""The log of each run of a fleet, in a folder of its own, as if it had been trained alone."""

from jaxsae.train.logs import JsonLines, Record
from jaxsae.train.run_dir import RunDir, make_folder_of


class MemberLogs:
    """A `Writer` that takes a fleet's records apart: `members/<nn>/log.jsonl` gets what belongs to run nn.

    A run that was stopped because it diverged gets one last event and no further records.

    Args:
        run: the fleet's run directory.
        size: number of runs.
        until: records of later steps are dropped first.
    """

    def __init__(self, run: RunDir, size: int, until: int):
        folders = [run.member(i) for i in range(size)]
        for folder in folders:
            make_folder_of(folder.log)
        self._lines = [JsonLines(folder.log, until) for folder in folders]
        self._ended = [any(r["kind"] == "event" for r in lines.kept) for lines in self._lines]

    def write(self, record: Record) -> None:
        members = record.get("members")
        if members is None:
            return
        when = {key: record[key] for key in ("kind", "step", "tokens", "time")}
        for i, lines in enumerate(self._lines):
            if self._ended[i]:
                continue
            if members["alive"][i] > 0:
                lines.write({**when, **{name: values[i] for name, values in members.items() if name != "alive"}})
            else:
                lines.write({**when, "kind": "event", "event": "stopped: the loss or the gradient is not finite"})
                self._ended[i] = True

    def close(self) -> None:
        for lines in self._lines:
            lines.close()
