"""The champion of a store: the bundle in use, and what is left to judge by where a part of the store is lost."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from router.bundle.bundle import Bundle
from router.errors import BundleError
from router.portfolio.tiers import Tier
from training.errors import LogError
from training.evaluation.training_data import TrainingData
from training.log.split import Split
from training.retrain.state import State
from training.retrain.store import Store

_OF_CONTENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ELOOP}
"""Errors of the file system that say what stands there. All others say that the machine fails."""


@dataclass(frozen=True)
class Champion:
    """The champion of a store. bundle: None where there is none.

    uncompared: why a challenger takes over without a comparison; "" where it must be compared.
    """

    bundle: Bundle | None
    uncompared: str

    @classmethod
    def of(cls, state: State, bundle: Bundle | None, tiers: Sequence[Tier]) -> Champion:
        """The champion of a state. bundle: that of `find_champion`; tiers: today's."""
        if bundle is None:
            why = "no earlier bundle of this store can be loaded" if state.bundles else "first bundle of this store"
            return cls(bundle=None, uncompared=f"{why}, nothing to compare it with")
        gone = set(bundle.manifest.tiers) - {tier.name for tier in tiers}
        uncompared = f"the champion asks {', '.join(sorted(gone))}, no longer in tiers.toml" if gone else ""
        return cls(bundle=bundle, uncompared=uncompared)


@dataclass(frozen=True)
class FoundChampion:
    """The champion that loads: that of the state, or where this one is lost or damaged, the last one before that does.

    state: with this champion, or with none. bundle: its bundle, or None. reason: what is wrong with the champion of the
    state before, and which bundle is champion now, in one line; "" where nothing is wrong.
    """

    state: State
    bundle: Bundle | None
    reason: str = ""


def find_champion(state: State, store: Store) -> FoundChampion:
    """Load the champion, or go back to an earlier one.

    Where the state goes back, its settings are forgotten, so that a challenger is trained and judged anew, also where
    no log file is new. Raises OSError or MemoryError where the machine fails: that says nothing of a bundle.
    """
    problem = ""
    for name in (state.champion, *reversed(state.former)):
        try:
            bundle = load_bundle(store, name) if name else None
        except BundleError as error:
            problem = problem or str(error)
            continue
        if not problem:
            return FoundChampion(state=state, bundle=bundle)
        return _gone_back(state, store, name, bundle, problem)
    return _gone_back(state, store, "", None, problem)


def _gone_back(state: State, store: Store, name: str, bundle: Bundle | None, problem: str) -> FoundChampion:
    lost, now = state.bundle_id(state.champion), state.bundle_id(name)
    back = replace(
        state.back_at(name),
        n_runs=state.n_runs + 1,
        settings={},
        unregistered=tuple(each for each in state.unregistered if store.bundle(each).is_dir()),
    )
    champion = f"{now} is champion again" if now else "no earlier champion can be loaded either"
    reason = f"the champion {lost} cannot be loaded ({problem}); {champion}; a challenger is trained and judged anew"
    return FoundChampion(state=back, bundle=bundle, reason=reason)


def load_bundle(store: Store, name: str) -> Bundle:
    """A bundle of the store. Raises BundleError where it is damaged, OSError or MemoryError where the machine fails."""
    with raising_errors_of_the_machine():
        return Bundle.load(store.bundle(name))


@contextmanager
def raising_errors_of_the_machine() -> Iterator[None]:
    """Where a bundle does not load because the machine fails, raise that OSError or MemoryError in its place."""
    try:
        yield
    except BundleError as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno not in _OF_CONTENT):
            raise cause from None
        raise


def training_data_of(bundle: Bundle) -> TrainingData:
    """What a bundle was trained on. Where the file is lost or damaged, the split says what it may have been trained on.

    Then only prompts that every training holds out count as not seen. Raises OSError where the machine fails.
    """
    try:
        return TrainingData.load(bundle)
    except LogError:
        training, n_tiers = bundle.manifest.training, len(bundle.manifest.tiers)
        none, cells = np.empty(0, np.str_), np.empty((0, n_tiers), np.float32)
        return TrainingData(
            prompt_ids=none,
            groups=none,
            embedding=np.empty((0, 0), np.float32),
            embedded=np.empty(0, int),
            out_of_fold=cells,
            correct=cells,
            cost_usd=cells,
            others=Split(training["test_share"], training["seed"]),
        )
