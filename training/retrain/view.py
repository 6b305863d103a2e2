"""What a store and a receipt say, for people."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import StoreError
from training.log.table import IngestSummary
from training.retrain.log_files import options_to_accept
from training.retrain.receipt import Receipt
from training.retrain.state import LogFile, State
from training.retrain.store import Store
from training.tracking import NO_TRACKING, TRACKED

N_RECEIPTS = 5
"""How many of the last receipts are shown."""


def receipt_text(receipt: Receipt) -> str:
    """What a run of `retrain` or `rollback` did."""
    lines = [f"promoted: {receipt.reason}" if receipt.promoted else receipt.reason]
    if receipt.champion is None:
        lines.append("no champion yet")
    elif receipt.challenger in (None, receipt.champion):
        lines.append(f"champion {receipt.champion}")
    else:
        lines.append(f"champion {receipt.champion}; the last challenger, {receipt.challenger}, is not in use")
    if receipt.panel is not None:
        lines.append(f"next panel: ask every tier on {receipt.panel['share']:.0%} of the requests "
                     f"({receipt.panel['n_prompts']:,}); {receipt.panel['reason']}")  # fmt: skip
    if receipt.log is not None:
        lines.append(IngestSummary(**receipt.log).lines)
    lines += [f"set aside: {path}: {reason}" for path, reason in receipt.set_aside.items()]
    lines += _commands_text(receipt.accept_commands)
    if receipt.tracking not in (TRACKED, NO_TRACKING):
        lines.append(f"{receipt.tracking}; the next run tries again")
    return "\n".join(lines)


@dataclass(frozen=True)
class StoreView:
    """A store as it was committed last. receipts: the last ones, the latest last."""

    store: Path
    state: State
    receipts: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, folder: str | Path) -> StoreView:
        """Look at a store, also while a run holds it. Raises StoreError where there is none, or it cannot be read."""
        store = Store(folder)
        state = store.read()
        if state.receipt is None:
            raise StoreError(f"{store.folder}: no store, or no run of `broker retrain` that decided anything yet")
        return cls(store=store.folder, state=state, receipts=tuple(store.receipts()[-N_RECEIPTS:]))

    @property
    def set_aside(self) -> dict[str, LogFile]:
        """The files that are set aside, by path."""
        return {file.path: file for file in self.state.files.values() if file.set_aside}

    @property
    def accept_commands(self) -> dict[str, str]:
        """By tier, the command that accepts the change that files are set aside for, with the last run's options."""
        known = dict((self.state.receipt or {}).get("accept_commands", {}))
        options = options_to_accept(self.state.files.values())
        usual = "broker retrain ... --accept-change"
        return {tier: known.get(tier, f"{usual} {shlex.quote(option)}") for tier, option in options.items()}

    def role_of(self, name: str) -> str:
        """What a bundle is now."""
        state = self.state
        if name == state.champion:
            return "champion"
        if state.bundles[name].data_digest in state.rolled_back:
            return "rolled back"
        return "former champion" if name in state.former else "not in use"

    def to_json(self) -> dict[str, Any]:
        """The view as `broker store --json` prints it."""
        state, taken = self.state, self._taken
        return {
            "store": str(self.store),
            "champion": state.bundle_id(state.champion),
            "versions": [
                {"bundle": name, "bundle_id": stored.bundle_id, "made_utc": stored.made_utc, "role": self.role_of(name)}
                for name, stored in state.bundles.items()
            ],
            "n_runs": state.n_runs,
            "files_taken": len(taken),
            "rows_taken": sum(file.n_rows - file.n_quarantined for file in taken),
            "newest_timestamp": max((file.last_timestamp for file in taken), default=""),
            "set_aside": {path: file.set_aside for path, file in self.set_aside.items()},
            "accept_commands": self.accept_commands,
            "accepted": [{"tier": change.tier, "since": change.since} for change in state.accepted],
            "receipts": list(self.receipts),
        }

    def text(self) -> str:
        """The view for a terminal."""
        shown, state = self.to_json(), self.state
        stored = state.bundles.get(state.champion)
        lines = [f"champion {stored.bundle_id}, made {stored.made_utc}" if stored else "no champion"]
        roles = Counter(version["role"] for version in shown["versions"])
        lines.append(f"bundles: {len(state.bundles)} ({', '.join(f'{n} {role}' for role, n in roles.items())})")
        newest = f", up to {shown['newest_timestamp']}" if shown["newest_timestamp"] else ""
        lines.append(f"read so far: {shown['rows_taken']:,} rows of {shown['files_taken']:,} log files{newest}")
        lines += [
            f"accepted: a change of {change['tier']}" + (f" since {change['since']}" if change["since"] else "")
            for change in shown["accepted"]
        ]
        lines += [f"set aside: {path}: {why}" for path, why in shown["set_aside"].items()]
        lines += _commands_text(shown["accept_commands"])
        lines.append(f"the last {len(self.receipts)} of {state.n_runs} decisions:")
        lines += [f"  {entry['run']}: {'promoted: ' * entry['promoted']}{entry['reason']}" for entry in self.receipts]
        return "\n".join(lines)

    @property
    def _taken(self) -> list[LogFile]:
        return [file for file in self.state.files.values() if not file.set_aside]


def _commands_text(commands: Mapping[str, str]) -> list[str]:
    return [
        line
        for tier, command in commands.items()
        for line in (f"if {tier} really changed, look at these files, then run:", f"  {command}")
    ]
