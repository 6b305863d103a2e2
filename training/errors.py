"""The errors of training; all are RouterErrors.

RouterError
├── LogError        the outcome log cannot be used as it is
├── EncoderError    an encoder cannot be made or exported
├── ParityError     the exported graph does not decide as the models it was made from
├── ConfigError     a training setting is out of range
│   └── TrackingError   MLflow cannot be reached, or refuses
├── ClusterError    the workers of a cluster could not finish
└── StoreError      the store of `broker retrain` cannot be used as it is
    └── StoreBusyError  another run holds it
"""

import re

from router.errors import RouterError

_CREDENTIALS = re.compile(r"(?<=//)[^/\s@]+@")


class LogError(RouterError):
    """The outcome log cannot be used as it is."""


class EncoderError(RouterError):
    """An encoder cannot be made or exported."""


class ParityError(RouterError):
    """The exported graph does not decide as the models it was made from."""

    exit_code = 1


class ConfigError(RouterError, ValueError):
    """A training setting is out of range."""


class TrackingError(ConfigError):
    """MLflow cannot be reached, or refuses what it is told.

    uri: the tracking URI. cause: what was raised, by MLflow or by what it uses.
    """

    def __init__(self, uri: str, cause: Exception) -> None:
        self.uri, self.cause = uri, cause
        super().__init__(
            f"{self.summary}; name another place with --tracking-uri or MLFLOW_TRACKING_URI, "
            'or track nothing with --tracking-uri "none"'
        )

    @property
    def summary(self) -> str:
        """One line of at most about 400 characters, without names and passwords in addresses."""
        first = next(iter(str(self.cause).splitlines()), "") or type(self.cause).__name__
        return _CREDENTIALS.sub("", f"tracking at {self.uri} failed: {first[:300]}")


class ClusterError(RouterError):
    """The workers of a cluster could not finish."""

    exit_code = 1


class StoreError(RouterError):
    """The store cannot be used as it is."""


class StoreBusyError(StoreError):
    """Another run holds the store."""

    exit_code = 3
