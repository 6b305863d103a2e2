"""What the runs of `retrain` decided, as state.json holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from training.errors import StoreError
from training.retrain.acceptance import Acceptance
from training.retrain.doubt import Watch
from training.retrain.evidence import Evidence

STATE_FORMAT = 1


@dataclass(frozen=True)
class LogFile:
    """What was found in one log file; a file with another content is another file.

    n_prompts, last_timestamp: of the rows that can be used; the timestamp in ISO 8601, "" where none has one.
    set_aside: why the file is kept out of training and judging; "" where it is not.
    contradicts: the tier whose answers are the reason, so that --accept-change may name it; "" where none is.
    """

    path: str
    n_rows: int
    n_quarantined: int
    n_prompts: int
    last_timestamp: str
    set_aside: str
    contradicts: str = ""


@dataclass(frozen=True)
class StoredBundle:
    """Where a bundle comes from. parent: bundle_id of the champion that it challenged; "" where there was none."""

    bundle_id: str
    parent: str
    data_digest: str
    code_version: str
    made_utc: str
    mlflow_run_id: str


@dataclass(frozen=True)
class State:
    """What the runs decided. Bundles are named by the number of the run that made them.

    files: what was read so far, by SHA-256 of the content, in the order in which the files were first read.
    settings: those of the last run. former: earlier champions, the latest last.
    rolled_back: data digests of champions that were taken back. unregistered: bundles that MLflow does not know yet.
    is_registry_current: whether MLflow's aliases are those of this state. receipt: of the last decision.
    evidence: what the files that were taken since the last change of the champion say of each tier, by file and tier.
    accepted: changes of tiers that someone accepted. watch: of the champion's promise; None where the champion took
        over in another way than by being promoted.
    """

    n_runs: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, LogFile] = field(default_factory=dict)
    bundles: Mapping[str, StoredBundle] = field(default_factory=dict)
    champion: str = ""
    challenger: str = ""
    former: tuple[str, ...] = ()
    rolled_back: tuple[str, ...] = ()
    unregistered: tuple[str, ...] = ()
    is_registry_current: bool = True
    receipt: Mapping[str, Any] | None = None
    evidence: Mapping[str, Mapping[str, Evidence]] = field(default_factory=dict)
    accepted: tuple[Acceptance, ...] = ()
    watch: Watch | None = None

    def bundle_id(self, name: str) -> str | None:
        """The bundle_id of a stored bundle; None where `name` is ""."""
        return self.bundles[name].bundle_id if name else None

    @property
    def taken_back(self) -> str | None:
        """The bundle_id of the last challenger where a champion of the same data was rolled back; else None."""
        is_back = self.challenger and self.bundles[self.challenger].data_digest in self.rolled_back
        return self.bundle_id(self.challenger) if is_back else None

    @property
    def run_name(self) -> str:
        """The name of the bundle that the last run made, if it made one."""
        return f"{self.n_runs:06d}"

    def with_champion(self, name: str) -> State:
        """The state with the bundle `name` as champion; what files say is compared with its expectation from now on."""
        former = (*self.former, self.champion) if self.champion else self.former
        return replace(self, champion=name, former=former, evidence={}, watch=None)

    def with_lowered(self, name: str) -> State:
        """The state with the bundle `name` as champion: the champion of before with a lower promise.

        Its estimates are the same, so that what was found of files and panels stays.
        """
        return replace(self, champion=name, former=(*self.former, self.champion))

    def back_at(self, name: str) -> State:
        """The state with a former champion, or none (""), as champion again; champions after it are former no more."""
        former = self.former[: self.former.index(name)] if name else ()
        return replace(self, champion=name, former=former, evidence={}, watch=None)

    def to_json(self) -> str:
        """The text of state.json."""
        return json.dumps({"format": STATE_FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> State:
        """The state of a text. Raises StoreError where it is not one of this format; source: the file's name."""
        try:
            new: dict[str, Any] = {"evidence": {}, "accepted": [], "watch": None}  # which older stores have not
            document = {**new, **json.loads(text)}
            found = document.pop("format")
            if found != STATE_FORMAT or set(document) != {entry.name for entry in fields(cls)}:
                raise ValueError(f"found format {found!r}, expected {STATE_FORMAT}")
            document["files"] = {digest: LogFile(**entry) for digest, entry in document["files"].items()}
            document["bundles"] = {name: StoredBundle(**entry) for name, entry in document["bundles"].items()}
            document["evidence"] = {
                digest: {tier: Evidence(**entry) for tier, entry in of_file.items()}
                for digest, of_file in document["evidence"].items()
            }
            document["accepted"] = tuple(Acceptance(**entry) for entry in document["accepted"])
            document["watch"] = document["watch"] and Watch.from_json(document["watch"])
            names = {name: tuple(document[name]) for name in ("former", "rolled_back", "unregistered")}
            state = cls(**{**document, **names})
            state._check_names()
            return state
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreError(
                f"{source}: not a state of this version ({error}); restore the file from a backup, or start a new store"
            ) from error

    def _check_names(self) -> None:
        """Raises ValueError where a name stands for no bundle of the state, or runs and receipt are of another form."""
        named = {"champion": self.champion, "challenger": self.challenger}
        named |= {f"former champion {number}": name for number, name in enumerate(self.former)}
        named |= {f"unregistered bundle {number}": name for number, name in enumerate(self.unregistered)}
        for what, name in named.items():
            if name and name not in self.bundles:
                raise ValueError(f"its {what} is {name!r}, and it has no bundle of that name")
        if type(self.n_runs) is not int:
            raise ValueError(f"n_runs is {self.n_runs!r}")
        if self.receipt is not None and type(self.receipt["run"]) is not int:
            raise ValueError("its receipt is of no run")
