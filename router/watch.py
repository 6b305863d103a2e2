"""Follow files on disk: the bundle that a training run replaces, the price table and the policy that someone edits."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from router.bundle.manifest import MANIFEST_FILE
from router.errors import RouterError
from router.router import Router

logger = logging.getLogger(__name__)

Signature = tuple[object, ...] | None
_NEVER: Signature = ("never looked at",)


class Watcher:
    """Keeps a router at the newest bundle and prices on disk; a broken file never replaces what works.

    >>> with Watcher(router, "models/champion", prices="prices.toml"):     # doctest: +SKIP
    ...     serve(router)

    bundle: a bundle's folder, or a link to one, which may be pointed elsewhere; None follows prices only.
    prices: a file in the format of tiers.toml, which also holds for a new bundle; None takes each bundle's own.
    policy: a policy.toml (docs/policy.md); None leaves the router's policy as it is.
    interval_s: seconds between two looks; a look that finds nothing new costs a few microseconds.

    A refused file is logged once as a warning that says what was found and expected. It is tried again at every look,
    since it may have been half copied. Nothing that happens during a look ends the thread: whatever goes wrong, the
    router keeps what it has, and the next look comes. `alive` and `trouble` say how the watcher is.
    """

    def __init__(
        self,
        router: Router,
        bundle: str | Path | None = None,
        *,
        prices: str | Path | None = None,
        policy: str | Path | None = None,
        interval_s: float = 5.0,
    ) -> None:
        self._router = router
        self._bundle = None if bundle is None else Path(bundle)
        self._prices = None if prices is None else Path(prices)
        self._policy = None if policy is None else Path(policy)
        self._interval_s = interval_s
        self._stop = Event()
        self._thread: Thread | None = None
        self._trouble = ""
        self._bundle_taken: Signature = _NEVER
        self._prices_taken: Signature = _NEVER
        self._policy_taken: Signature = _NEVER

    @property
    def alive(self) -> bool:
        """Whether the thread runs; False before `start`, after `stop`, and in a process that was forked."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def trouble(self) -> str:
        """What was wrong at the thread's last look, one line for each file; empty where all was well."""
        return self._trouble

    def look(self) -> bool:
        """Look once, now, and return whether the router took anything new.

        Raises BundleError, PriceError or PolicyError where a file is refused; the others are taken all the same.
        """
        took, errors = self._look()
        if errors:
            raise errors[0]
        return took

    def _look(self) -> tuple[bool, list[Exception]]:
        """Look once: whether the router took anything new, and what was wrong with each file."""
        took, errors = self._look_at_bundle_and_prices()
        policy_found = _NEVER if self._policy is None else _signature(self._policy)
        if self._policy is not None and policy_found != self._policy_taken:
            try:
                self._router.update_policy(self._policy)
                self._policy_taken = policy_found
                took = True
            except Exception as error:
                errors.append(error)
        return took, errors

    def _look_at_bundle_and_prices(self) -> tuple[bool, list[Exception]]:
        bundle_found = _NEVER if self._bundle is None else _signature(self._bundle / MANIFEST_FILE)
        prices_found = _NEVER if self._prices is None else _signature(self._prices)
        errors: list[Exception] = []
        if self._bundle is not None and bundle_found != self._bundle_taken:
            try:
                self._router.reload(self._bundle, self._prices)
                self._bundle_taken, self._prices_taken = bundle_found, prices_found
                return True, []
            except Exception as error:  # Whatever it is, it must not hold up new prices.
                errors.append(error)
        if self._prices is not None and prices_found != self._prices_taken:
            try:
                self._router.update_prices(self._prices)
                self._prices_taken = prices_found
                return True, errors
            except Exception as error:
                errors.append(error)
        return False, errors

    def start(self) -> Watcher:
        """Look now, then every interval_s seconds in a daemon thread. Raises nothing: refused files are logged.

        Changes nothing where the thread runs already.
        """
        if self.alive:
            return self
        self._try()
        self._stop.clear()
        self._thread = Thread(target=self._run, name="token-broker-watcher", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread; the router keeps what it has."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Watcher:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._try()

    def _try(self) -> None:
        try:
            took, errors = self._look()
            if took:
                logger.info(
                    "now bundle %s at prices %s", self._router.bundle.manifest.bundle_id, self._router.prices.id
                )
        except Exception as error:  # The thread must outlive what nobody foresaw.
            errors = [error]
        trouble = "\n".join(dict.fromkeys(_in_words(error) for error in errors))
        if trouble and trouble != self._trouble:
            logger.warning("kept what was in use: %s", trouble)
        self._trouble = trouble


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, RouterError) else f"{type(error).__name__}: {error}"


def _signature(path: Path) -> Signature:
    """What changes when a file does: its real path, inode, size and time; None where there is no file."""
    try:
        stat = path.stat()
        return (str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return None
