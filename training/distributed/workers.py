"""The workers of a Dask cluster: whether they can be used, tasks for them, and what it means when one is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import lightgbm

from router.extras import install_command
from training.errors import ClusterError, ConfigError
from training.export.versions import versions

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 20
ATTEMPTS = 3
"""At a fit in which LightGBM fails while all workers live."""

_REMEDY = (
    "nothing was written. Look at the workers' logs: most likely one ran out of memory or disk; give each more, or add "
    "workers, and run again"
)


@contextmanager
def workers_at(address: str) -> Iterator[Workers]:
    """Those of the Dask scheduler at an address; ConfigError where Dask is not installed, or nobody answers."""
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise ConfigError(f"--cluster needs Dask: {install_command('distributed')}") from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {address} ({error}); start one with `dask scheduler`, and workers with "
            "`dask worker ADDRESS`, or leave --cluster out"
        ) from error
    with client:
        yield Workers(client)


@dataclass(frozen=True)
class Workers:
    """client: of dask.distributed."""

    client: Any

    @property
    def addresses(self) -> list[str]:
        """Of those that live now, sorted; the scheduler is asked, as the client's own list may lack some."""
        return sorted(self.client.nthreads())

    def check(self, paths: Sequence[Path]) -> None:
        """Raises ConfigError where there is no worker, or one that has other versions or does not see the paths."""
        try:
            self.client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            seen = self.client.run(_seen_from_a_worker, list(paths))
        except TimeoutError as error:
            raise ConfigError("the Dask scheduler has no worker; start some with `dask worker ADDRESS`") from error
        except ImportError as error:
            raise ConfigError(
                f"a worker lacks what training needs ({error}); install token-broker[train,distributed] there"
            ) from error
        expected = facts_of_a_process()
        for worker, (found, missing) in seen.items():
            if missing:
                raise ConfigError(
                    f"worker {worker} does not see {missing[0]}; put logs and cache on storage that all workers see"
                )
            _refuse_other_versions(f"worker {worker}", found, expected)

    def submit(self, task: Callable[..., Any], *each: Sequence[Any], **settings: Any) -> list[Any]:
        """A task per element, dealt out to the workers in turn; another takes over from one that dies."""
        if not (workers := self.addresses):
            raise ClusterError(f"no worker is left; {_REMEDY}")
        here = facts_of_a_process()
        return [
            self.client.submit(
                _done_by_a_worker, here, task, *arguments, **settings, pure=False,
                workers=[workers[number % len(workers)]], allow_other_workers=True,
            )
            for number, arguments in zip(count(), zip(*each, strict=True), strict=False)
        ]  # fmt: skip

    def run(self, task: Callable[..., Any], *each: Sequence[Any], **settings: Any) -> list[Any]:
        """The results of a task per element, in order; raises what a task raised, ClusterError where workers died."""
        with _failures():
            given = self.submit(task, *each, **settings)
            return list(self.client.gather(given))

    def while_all_live(self, work: Callable[[], str]) -> str:
        """What `work` returns, which has all workers wait for each other; ClusterError as soon as one of them goes.

        Where LightGBM fails while all of them live, as when a connection breaks, it is tried again.
        """
        before, pool = set(self.addresses), ThreadPoolExecutor(1)
        try:
            with _failures():
                for attempt in range(1, ATTEMPTS + 1):
                    found = pool.submit(work)
                    while not futures.wait([found], timeout=1).done:
                        if gone := before - set(self.addresses):
                            self.client.close()  # else Dask waits for it for ever
                            raise ClusterError(f"worker {min(gone)} went while LightGBM was fitted; {_REMEDY}")
                    if attempt == ATTEMPTS or not isinstance(found.exception(), lightgbm.basic.LightGBMError):
                        break
                    logger.warning("LightGBM failed, trying again: %s", found.exception())
                return found.result()
        finally:
            pool.shutdown(wait=False)


@contextmanager
def _failures() -> Iterator[None]:
    """Dask's, LightGBM's and DuckDB's ways to say that workers are gone, or have no room left."""
    from dask.distributed import CancelledError, KilledWorker

    gone = (KilledWorker, CancelledError, OSError)  # OSError: also of a connection, or of an answer that is late
    try:
        yield
    except (*gone, MemoryError, lightgbm.basic.LightGBMError, duckdb.Error) as error:
        raise ClusterError(f"the cluster could not finish ({type(error).__name__}: {error}); {_REMEDY}") from error


@lru_cache(maxsize=1)
def facts_of_a_process() -> dict[str, str]:
    """What must be the same everywhere: parts are told by DuckDB's hash, and models must be those of this version."""
    return {**versions(), "duckdb": duckdb.__version__}


def _refuse_other_versions(worker: str, found: dict[str, str], expected: dict[str, str]) -> None:
    if other := [name for name in expected if found.get(name) != expected[name]]:
        raise ConfigError(
            f"{worker} has {other[0]} {found.get(other[0])}, here it is {expected[other[0]]}; "
            "install the same versions everywhere"
        )


def _done_by_a_worker(expected: dict[str, str], task: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """A task; workers that joined after the check are checked by their first one."""
    _refuse_other_versions("a worker that joined later", facts_of_a_process(), expected)
    return task(*arguments, **settings)


def _seen_from_a_worker(paths: Sequence[Path]) -> tuple[dict[str, str], list[Path]]:
    """Versions, and which of the paths are not there."""
    return facts_of_a_process(), [path for path in paths if not path.exists()]
