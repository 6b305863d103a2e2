"""Token Broker's training line: from logged outcomes to a bundle.

Needs the extra `train`.
"""

from importlib.util import find_spec

from router.extras import install_command

_EXTRA = {
    "duckdb", "lightgbm", "matplotlib", "mlflow", "onnx", "pandas", "pyarrow", "scipy", "sklearn", "tqdm",
}  # fmt: skip
if _missing := sorted(package for package in _EXTRA if find_spec(package) is None):
    raise ImportError(f"training needs {', '.join(_missing)}: {install_command('train')}")

from training import scorers  # noqa: E402
from training.config import TrainingConfig  # noqa: E402
from training.encoders.prompt_encoder import PromptEncoder  # noqa: E402
from training.evaluation.compare import BundleComparison, compare  # noqa: E402
from training.evaluation.evaluate import evaluate  # noqa: E402
from training.evaluation.mistakes import mistakes  # noqa: E402
from training.evaluation.off_policy import OffPolicyReport  # noqa: E402
from training.evaluation.result import Evaluation  # noqa: E402
from training.evaluation.training_data import TrainingData  # noqa: E402
from training.fit.estimator import SuccessEstimator  # noqa: E402
from training.pipeline import TrainingResult, train  # noqa: E402

__all__ = [
    "BundleComparison",
    "Evaluation",
    "OffPolicyReport",
    "PromptEncoder",
    "SuccessEstimator",
    "TrainingConfig",
    "TrainingData",
    "TrainingResult",
    "compare",
    "evaluate",
    "mistakes",
    "scorers",
    "train",
]
