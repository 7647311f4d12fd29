"""What a sweep cost in device-hours, and in money where a price is declared; what replaying and stopping early spared.

Counted from the journals: a boundary's device-seconds are those of a trial that trains all of its own way, so what it
took over from another is counted at what it would have cost. What runs really held devices for, also for work that was
lost, is the budget's count (`spent.json`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeps.budget import HOUR_S, read_spent
from sweeps.leaderboard import figure
from sweeps.results import Journal, SweepFolder, SweepInfo, read_journal, read_state
from sweeps.steps import ENDED, segments


def money(hours: float, price: float | None) -> str:
    """Write what device-hours cost, in the price's own currency; empty without a price."""
    return "" if price is None else figure(hours * price, 3)


def per_hour(price: float) -> str:
    """Say what the price is."""
    return f"at {price:g} a device-hour"


def hours_text(hours: float, price: float | None = None) -> str:
    """Write device-hours, and what they cost in brackets."""
    own = f"{figure(hours, 3)} device-hours"
    return own if price is None else f"{own} ({money(hours, price)})"


@dataclass(frozen=True)
class Costs:
    """Device-hours of a whole sweep.

    Args:
        stands_for: What its trials would have cost if each had trained all that it has.
        taken_over: What of that was replayed from the history, or shared with another trial.
        spared: About what early stopping left out, at each trial's own pace; 0 where none was stopped.
        paid: What its runs held devices for; None where no run counted that.
        price: Money per device-hour, None where none was declared.
    """

    stands_for: float
    taken_over: float
    spared: float
    paid: float | None
    price: float | None

    @property
    def trained(self) -> float:
        """What the sweep's own trials trained of what they stand for."""
        return self.stands_for - self.taken_over

    def sentences(self, running: bool = False) -> list[str]:
        """Say what the sweep cost, so far if it is `running`, and what it was spared."""
        hours, price = self.trained if self.paid is None else self.paid, self.price
        sum_, rate = hours_text(hours, price), f", {per_hour(price)}" if price else ""
        said = [f"The sweep has cost {sum_} so far{rate}." if running else f"The sweep cost {sum_}{rate}."]
        spared = [f"replaying and sharing {hours_text(self.taken_over, price)}"] if self.taken_over > 0 else []
        spared += [f"early stopping about {hours_text(self.spared, price)}"] if self.spared > 0 else []
        return [*said, f"Spared: {', '.join(spared)}."] if spared else said

    def facts(self) -> list[tuple[str, str]]:
        """List every figure by name."""
        price = self.price
        found = [] if price is None else [("price", f"{price:g} a device-hour; money is in brackets")]
        found += [] if self.paid is None else [("devices held by its runs", hours_text(self.paid, price))]
        found += [("what its trials stand for", hours_text(self.stands_for, price))]
        found += [("of that trained here", hours_text(self.trained, price))]
        found += [("of that replayed or shared", hours_text(self.taken_over, price))]
        return [*found, ("spared by early stopping, at each trial's pace", f"about {hours_text(self.spared, price)}")]


def read_costs(folder: SweepFolder, info: SweepInfo) -> Costs:
    """Add a sweep's costs up from its folder, while it runs or after.

    Raises:
        UserError: A file of the folder is damaged.
    """
    homes = {trial.trial_id: folder.trial(trial.trial_id) for trial in info.trials}
    journals = {trial_id: read_journal(home) for trial_id, home in homes.items()}
    ended = {trial_id: journals[trial_id] for trial_id, home in homes.items() if read_state(home).state in ENDED}
    both = [_seconds(journal) for journal in journals.values()]
    paid = read_spent(folder.spent).device_seconds / HOUR_S if folder.spent.is_file() else None
    return Costs(
        sum(whole for whole, _ in both) / HOUR_S,
        sum(taken_over for _, taken_over in both) / HOUR_S,
        _spared(ended, journals, info.steps) / HOUR_S,
        paid,
        info.price_per_device_hour,
    )


def _seconds(journal: Journal) -> tuple[float, float]:
    """Give the device-seconds that a trial stands for, and those of them that it did not train itself."""
    before, taken_over = 0.0, 0.0
    for segment in segments(journal):
        until = float(journal.boundaries[segment.step]["device_seconds"])
        if segment.length:
            taken_over += (until - before) * (1 - segment.trained / segment.length)
        before = until
    return before, taken_over


def _spared(ended: Mapping[str, Journal], journals: Mapping[str, Journal], steps: int) -> float:
    """Estimate the device-seconds ahead of trials that were stopped; one without a pace gets the average one."""
    paces = {trial_id: pace for trial_id, journal in journals.items() if (pace := _pace(journal)) is not None}
    average = sum(paces.values()) / len(paces) if paces else 0.0
    reached = {trial_id: max(journal.boundaries, default=0) for trial_id, journal in ended.items()}
    return sum(paces.get(trial_id, average) * (steps - step) for trial_id, step in reached.items())


def _pace(journal: Journal) -> float | None:
    """Give the device-seconds of a step."""
    step = max(journal.boundaries, default=0)
    return float(journal.boundaries[step]["device_seconds"]) / step if step else None
