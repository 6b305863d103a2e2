"""Follow files on disk: the bundle that a training run replaces, and the price table that someone edits."""

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
    interval_s: seconds between two looks; a look that finds nothing new costs a few microseconds.

    A refused file is logged once as a warning that says what was found and expected. It is tried again at every look,
    since it may have been half copied.
    """

    def __init__(
        self,
        router: Router,
        bundle: str | Path | None = None,
        *,
        prices: str | Path | None = None,
        interval_s: float = 5.0,
    ) -> None:
        self._router = router
        self._bundle = None if bundle is None else Path(bundle)
        self._prices = None if prices is None else Path(prices)
        self._interval_s = interval_s
        self._stop = Event()
        self._thread: Thread | None = None
        self._trouble = ""
        self._bundle_taken: Signature = _NEVER
        self._prices_taken: Signature = _NEVER

    def look(self) -> bool:
        """Look once, now, and return whether the router took anything new.

        Raises BundleError or PriceError where a file is refused; new prices are taken even if the bundle is refused.
        """
        bundle_found = _NEVER if self._bundle is None else _signature(self._bundle / MANIFEST_FILE)
        prices_found = _NEVER if self._prices is None else _signature(self._prices)
        refused: RouterError | None = None
        if self._bundle is not None and bundle_found != self._bundle_taken:
            try:
                self._router.reload(self._bundle, self._prices)
                self._bundle_taken, self._prices_taken = bundle_found, prices_found
                return True
            except RouterError as error:
                refused = error
        has_new_prices = self._prices is not None and prices_found != self._prices_taken
        if self._prices is not None and has_new_prices:
            self._router.update_prices(self._prices)
            self._prices_taken = prices_found
        if refused is not None:
            raise refused
        return has_new_prices

    def start(self) -> Watcher:
        """Look now, then every interval_s seconds in a daemon thread. Raises nothing: refused files are logged."""
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
            if self.look():
                logger.info(
                    "now bundle %s at prices %s", self._router.bundle.manifest.bundle_id, self._router.prices.id
                )
            self._trouble = ""
        except RouterError as error:
            if str(error) != self._trouble:
                logger.warning("kept what was in use: %s", error)
            self._trouble = str(error)


def _signature(path: Path) -> Signature:
    """What changes when a file does: its real path, inode, size and time; None where there is no file."""
    try:
        stat = path.stat()
        return (str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return None
