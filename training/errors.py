"""The errors of training; all are RouterErrors.

RouterError
├── LogError        the outcome log cannot be used as it is
│   ├── LabelError      its column `correct` has other values than true, false and 0..1
│   └── FitError        an estimator cannot learn from what it is given
├── EncoderError    an encoder cannot be made or exported
├── EstimatorError  an estimator of one's own cannot be exported
├── ParityError     the exported graph does not decide as the models it was made from
├── ConfigError     a training setting is out of range
│   ├── MapError        a column map cannot be understood
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


class LabelError(LogError):
    """A log's outcomes are on another scale than true, false and 0..1, so that its rows would be lost by their outcome.

    source: the log. values: the most frequent values that cannot be read, with their counts. n_unreadable, n_labelled:
    rows with such a value, and with any.
    """

    def __init__(self, source: str, values: dict[str, int], n_unreadable: int, n_labelled: int) -> None:
        super().__init__(source, values, n_unreadable, n_labelled)
        self.source, self.values = source, values
        self.n_unreadable, self.n_labelled = n_unreadable, n_labelled

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}"

    @property
    def problem(self) -> str:
        """What is wrong and what to do, without the name of the log."""
        seen = ", ".join(f"{value} ({count:,} times)" for value, count in self.values.items())
        return (
            f"{self.n_unreadable:,} of {self.n_labelled:,} values of `correct` are not true, false or a number in "
            f"0..1; most frequent of these: {seen}. Say what correct means, for example --map correct=correct/5 for "
            "1 to 5, --map correct=correct/100 for percent, --map correct=correct:1 where only 1 is correct, or "
            "--map correct=OTHER_COLUMN"
        )


class FitError(LogError, ValueError):
    """An estimator cannot learn from what it is given."""


class EstimatorError(RouterError):
    """An estimator of one's own cannot be exported.

    estimator: the fitted model. problem: why.
    """

    def __init__(self, estimator: object, problem: str) -> None:
        super().__init__(estimator, problem)
        self.estimator, self.problem = estimator, problem

    def __str__(self) -> str:
        return (
            f"{type(self.estimator).__name__} cannot become part of a bundle: {self.problem}. "
            "It can still be cross-validated; to ship, take a model that skl2onnx converts, such as "
            "LogisticRegression, MLPClassifier, RandomForestClassifier, GradientBoostingClassifier or LGBMClassifier"
        )


class EncoderError(RouterError):
    """An encoder cannot be made or exported."""


class ParityError(RouterError):
    """The exported graph does not decide as the models it was made from."""

    exit_code = 1


class ConfigError(RouterError, ValueError):
    """A training setting is out of range."""


class MapError(ConfigError):
    """A column map cannot be understood.

    text: the map as it was given. problem: what is wrong with it.
    """

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(
            f"found the map {text!r}: {problem}; for example correct=score/5, correct=thumb:1 or model=name"
        )
        self.text, self.problem = text, problem


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
