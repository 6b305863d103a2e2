"""Reading a price map, and finding a log's models in it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from router.errors import PriceMapError
from router.extras import install_command
from router.feeds.formats import REGIONS, PricedModel, csv_models, litellm_models, openrouter_models
from router.files import read_bounded

LITELLM = "litellm"
LIST_PRICES = Path(__file__).with_name("list_prices.csv")
LIST_PRICES_DATE = "2026-11-26"
"""When the table that ships was taken from LiteLLM 1.106.2's map."""

_MOST_BYTES = 64 * 2**20
_LITELLM_FILE = "model_prices_and_context_window_backup.json"
_DATE = re.compile(r"[-@:](?:\d{4}-?\d{2}-?\d{2}|\d{4}|latest|free|preview)(?:-v\d(?::\d)?)?$")


@dataclass(frozen=True)
class PriceMap:
    """The models of a price map.

    source: where it is from, in words. names_are_routes: whether a name says who serves the model, as a gateway's do.
    """

    source: str
    models: tuple[PricedModel, ...]
    names_are_routes: bool = True

    def find(self, name: str, provider: str | None = None) -> tuple[PricedModel, bool] | None:
        """The model that a log or a tiers.toml means by a name, and whether the name is the same but for its prefix.

        provider: whose offer is meant; None takes the developer's own, where the map has it. Dates and "latest" at the
        end of a name count as no difference, if nothing nearer is found. None where the map has no such model.
        """
        for step, key in enumerate(_KEYS):
            found = [model for model in self._by_key[step].get(key(name), ()) if _is_of(model, provider)]
            if found:
                return min(found, key=_nearness), step < 3
        return self.find(name) if provider else None

    def offer(self, model: str, provider: str) -> PricedModel | None:
        """The offer that a tiers.toml states: the same name, but for its prefix, at the same provider.

        Where names are those of gateways, the whole name is enough: it says who serves the model.
        """
        for step, key in enumerate(_KEYS[:3]):
            found = self._by_key[step].get(key(model), ())
            is_enough = step == 0 and self.names_are_routes
            if matching := [each for each in found if is_enough or _is_of(each, provider)]:
                return min(matching, key=_nearness)
        return None

    def others(self, chosen: PricedModel) -> list[PricedModel]:
        """Other offers of the same model, the cheapest first."""
        same = [model for model in self._by_key[2].get(_last(chosen.model), ()) if model.provider != chosen.provider]
        return sorted(same, key=lambda model: (model.usd_per_mtok_output, model.model))

    @cached_property
    def _by_key(self) -> list[dict[str, list[PricedModel]]]:
        tables: list[dict[str, list[PricedModel]]] = []
        for key in _KEYS:
            table: dict[str, list[PricedModel]] = {}
            for model in self.models:
                table.setdefault(key(model.model), []).append(model)
            tables.append(table)
        return tables


def _is_of(model: PricedModel, provider: str | None) -> bool:
    return provider is None or model.provider.lower() == provider.lower()


def _nearness(model: PricedModel) -> tuple[bool, bool, int, str]:
    is_free = model.usd_per_mtok_input == model.usd_per_mtok_output == 0
    return is_free, model.provider not in REGIONS, len(model.model), model.model


def _last(name: str) -> str:
    return name.lower().rpartition("/")[2]


def _bare(name: str) -> str:
    return _DATE.sub("", _last(name))


_KEYS: tuple[Callable[[str], str], ...] = (str, str.lower, _last, _bare)
"""What names of models are compared by, the strictest first."""


def read_price_map(source: str | None, usd_per: Mapping[str, float] | None = None) -> PriceMap:
    """A price map: a file of LiteLLM's, OpenRouter's or CSV format; "litellm" for the map in its package.

    source: None takes LiteLLM's packaged map where LiteLLM is installed, else the small table that ships.
    usd_per: what one unit of another currency is in USD, by its code.
    Raises PriceMapError where it cannot be read, or has no model with a price.
    """
    if source is None or source == LITELLM:
        packaged = _packaged_litellm()
        if packaged is not None:
            return _checked(f"LiteLLM's packaged map {packaged}", _models(packaged, usd_per or {}))
        if source == LITELLM:
            raise PriceMapError(f"litellm is not installed: {install_command('gateway')}, or name a file")
        return _checked(f"list prices of {LIST_PRICES_DATE}, which ship", _models(LIST_PRICES, usd_per or {}))
    found = _checked(source, _models(Path(source), usd_per or {}))
    return replace(found, names_are_routes=Path(source).suffix.lower() != ".csv")


def _packaged_litellm() -> Path | None:
    """The map in LiteLLM's package. The package is not imported: that takes seconds, and asks the network."""
    spec = find_spec(LITELLM)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / _LITELLM_FILE).is_file():
            return path
    return None


def _checked(source: str, models: Iterator[PricedModel]) -> PriceMap:
    found = tuple(models)
    if not found:
        raise PriceMapError(f"{source}: found no model with prices; expected LiteLLM's map, OpenRouter's list or CSV")
    return PriceMap(source=source, models=found)


def _models(path: Path, usd_per: Mapping[str, float]) -> Iterator[PricedModel]:
    try:
        text = read_bounded(path, _MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise PriceMapError(f"{path}: cannot be read ({error.strerror}); expected a price map") from error
    except UnicodeDecodeError as error:
        raise PriceMapError(f"{path}: byte {error.start} is not UTF-8; expected a price map") from error
    if path.suffix.lower() == ".csv":
        return csv_models(csv.DictReader(io.StringIO(text)), usd_per, str(path))
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PriceMapError(f"{path}: not valid JSON: {error}; expected LiteLLM's map or OpenRouter's list") from error
    models = document.get("data") if isinstance(document, Mapping) else document
    if isinstance(models, Sequence) and not isinstance(models, str):
        return openrouter_models(list(models))
    return litellm_models(document if isinstance(document, Mapping) else {})
