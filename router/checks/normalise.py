r"""The final answer of a text in a normal form, so that two answers can be compared.

It errs to one side: where it is not clear what the final answer is, the whole text is. Two answers then agree too
seldom, which costs money, rather than wrongly, which costs accuracy. Nothing is computed or simplified beyond plain
numbers and fractions: `2+2` is not `4`. Who needs algebra gives a normaliser of their own.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, Inexact, localcontext
from math import gcd
from typing import Any

from router.checks.latex import balanced, plain_math
from router.checks.verdict import Verdict

Normaliser = Callable[[str], str | None]
"""From an answer's text to its normal form; None where the text has no answer."""

LONGEST_VALUE = 500
"""Characters. What is longer is text, and not a number, an option letter or a formula."""

_ONE_FENCE = re.compile(r"\s*```[\w+-]*\n((?:(?!```).)*)```\s*", re.DOTALL)
_JSON_FENCE = re.compile(r"^```json\s*\n((?:(?!```).)*)^```", re.DOTALL | re.MULTILINE)
_MARKER = re.compile(
    r"(?:\banswers?[*_ \t]*(?:\bis\b|\bare\b|:|=)|答案[*_ \t]*(?:是|为|:))(?:[\s:]|(?:\*\*|__)(?=\s))*"
    r"|####(?=\s*[-+$]?[0-9][0-9,.]*\s*\Z)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z])")
_LIST = re.compile(r"(?:1[.)]\s.*\b2|A[.)]\s.*\bB)[.)]\s", re.DOTALL)
_WRAPPERS = (("**", "**"), ("__", "__"), ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”"), ("*", "*"))
_FULL_WIDTH = {0xFF01 + step: 0x21 + step for step in range(94)} | {ord("−"): "-", ord("。"): ".", 0x3000: " "}

_OPTION = re.compile(r"(?:(?i:option|choice)\s*)?(?:\(([A-Za-z])\)|([A-Za-z])\s*[).:]|([A-Za-z]))")
_OPTION_AND_TEXT = re.compile(r"(?:(?i:option|choice)\s*)?(?:\(([A-J])\)|([A-J])\)|([A-J])\.)\s+(\S.*)")
_OPTIONS = re.compile(r"[A-J](?:(?:\s*,\s*|\s*&\s*|\s+and\s+|\s*,\s*and\s+)?[A-J]){1,9}")
_NAME = re.compile(r"(?:[A-Z][\w'’.-]*\s*){1,3}")

_DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]*|0)"  # 007 is a code and no number
_NUMBER = re.compile(rf"([+-]?)({_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{{1,2}}))?")
_QUANTITY = re.compile(
    rf"([+-]?{_DIGITS}(?:\.[0-9]+)?)\s*([^\W\d_][^\d.,;:!?()=+*]{{0,29}}|[%°][^\d.,;:!?()=+*]{{0,9}})"
)
_FRACTION = re.compile(r"([+-]?)\(?([0-9]{1,15})\)?/\(?([0-9]{1,15})\)?")
_WORDS_OF_MATH = frozenset("sqrt pi sin cos tan cot sec csc log ln exp infinity".split())

_ANSWER_KEYS = ("answer", "final_answer", "finalAnswer", "final answer")
_COMMENT_KEYS = frozenset(
    "reasoning explanation rationale thought thoughts thinking analysis steps solution work confidence".split()
)


def normalise(answer: str) -> str | None:
    r"""The final answer of a text in a normal form; None where there is none.

    The final answer is, in this order: JSON, where the whole text or its one block of JSON is; the last `\boxed{...}`;
    what stands after the last "answer is", "Answer:" or "####"; the whole text. Of JSON objects with a key `answer`
    and otherwise only reasoning, it is that key's value. What stands before `</think>` does not count.

    Its normal form is the first that fits:

    - JSON objects and arrays: keys sorted, no spaces, `1.0` as `1`.
    - Option letters: `(b)`, `B.`, `Option B` and `B) 5 apples` are `B`; `A, C` and `A and C` are `AC`.
    - Numbers: `1,234.50` is `1234.5`, `1/2` is `0.5`, `2/6` is `1/3`. Units and % stay: `5 kg` is `5kg`, not `5`. The
      dollar sign goes, since LaTeX has it too.
    - Formulas: LaTeX as plain text without spaces: `\frac{1}{\sqrt{3}}` is `1/sqrt(3)`; `x = 4` is `4`.
    - Everything else: text with one space between words, without Markdown, quotes and full stop around it, in lower
      case but for words like `aBcD`, whose case may mean something.

    Never raises. Takes time proportional to the text. A normal form is its own normal form.
    """
    form = _form_of(answer)
    for _ in range(3):  # what stood in quotes or in a box may itself be a box, JSON or marked
        before, form = form, None if form is None else _form_of(form)
        if form == before:
            break
    return form


def same(a: str, b: str, normaliser: Normaliser = normalise) -> bool:
    """Whether two answers agree: both have a final answer, and these are equal in the normal form."""
    form = normaliser(a)
    return form is not None and form == normaliser(b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """A check: the answer is the expected one, in the normal form.

    >>> Matches(expected="1,000")("How many?", "The answer is 1000.").score
    1.0
    """

    expected: str
    normaliser: Normaliser = normalise

    def __call__(self, prompt: str, answer: str) -> Verdict:
        """Score 1 where the answers agree, else 0. Never raises, with the normaliser that is shipped."""
        if same(self.expected, answer, self.normaliser):
            return Verdict(score=1.0, reason="as expected")
        return Verdict(score=0.0, reason="not the expected answer")


def canonical_json(value: Any) -> str:
    """JSON values that are equal have equal text: sorted keys, no spaces, whole numbers without a point."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _form_of(answer: str) -> str | None:
    text = unicodedata.normalize("NFC", answer.translate(_FULL_WIDTH))
    text = text.rpartition("</think>")[2].strip()
    fence = _ONE_FENCE.fullmatch(text)
    if fence:
        text = fence[1].strip()
    blocks = _JSON_FENCE.findall(text)
    form = _json_form(blocks[0] if len(blocks) == 1 else text)
    if form is not None:
        return form or None
    box = text.rfind("\\boxed{")
    inside = balanced(text, box + len("\\boxed")) if box >= 0 else None
    return (inside and _value_form(inside)) or _marked_form(text) or _value_form(text)


def _json_form(text: str) -> str | None:
    """The normal form of JSON, empty without an answer; None where the text is neither an object nor an array."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = json.loads(text, parse_float=_json_number)
        if isinstance(value, dict):
            answers = [value[key] for key in value if key in _ANSWER_KEYS]
            if len(answers) == 1 and _COMMENT_KEYS.issuperset(key for key in value if key not in _ANSWER_KEYS):
                value = answers[0]
        if value is None:
            return ""
        if isinstance(value, dict | list):
            return canonical_json(value)
        return _value_form(value if isinstance(value, str) else json.dumps(value)) or ""
    except (ValueError, RecursionError):
        return None


def _json_number(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _marked_form(text: str) -> str | None:
    """The normal form of what stands after the last marker; None where it is not clear where that ends.

    A number, an option letter or a formula may end with its line or its sentence. Words must end the text, or stand
    alone on a line after "Answer:".
    """
    markers = list(_MARKER.finditer(text))
    if not markers:
        return None
    marker = markers[-1]
    rest = text[marker.end() :].strip()
    line, _, more = rest.partition("\n")
    line = re.sub(r"\*\*([^*]+)\*\*", r"\1", line).rstrip().removesuffix("**")
    if line.rstrip().endswith(":") or _LIST.match(rest):
        return None
    form = _short_form(line) or _short_form(_SENTENCE_END.split(line, maxsplit=1)[0])
    starts_its_line = text[: marker.start()].rpartition("\n")[2].strip("*_# ").casefold() in ("", "final")
    if form is None and (not more.strip() or (starts_its_line and ":" in marker[0])):
        return _value_form(line)
    return form


def _value_form(text: str) -> str | None:
    return _short_form(text) or " ".join(map(_folded, _unwrapped(text).split())) or None


def _folded(word: str) -> str:
    """A word in lower case; as it is where case may mean something, as in `aBcD`."""
    return word.casefold() if word[1:] == word[1:].lower() or word == word.upper() else word


def _short_form(text: str) -> str | None:
    """The normal form of an option letter, a number, a formula or a quantity; None for everything else."""
    value = _unwrapped(text)
    if len(value) > LONGEST_VALUE:
        return None
    if re.search(r"[\\$]|[_^]\s*\{", value):
        value = _unwrapped(plain_math(value))
    return _option_form(value) or _number_form(value) or _formula_form(value) or _quantity_form(value)


def _unwrapped(text: str) -> str:
    """Without the space, Markdown, quotes and punctuation around it."""
    while True:
        before, text = text, text.strip()
        text = text.rstrip(".,;:?")
        if re.fullmatch(r"[^\W\d_]{2}!", text[-3:]):  # an exclamation mark, and not a factorial
            text = text[:-1]
        for left, right in _WRAPPERS:
            inside = text[len(left) : -len(right)]
            if len(text) > 1 and text.startswith(left) and text.endswith(right) and left not in inside:
                text = inside
        if text == before:
            return text


def _option_form(text: str) -> str | None:
    alone = _OPTION.fullmatch(text)
    if alone:
        return (alone[1] or alone[2] or alone[3]).upper()
    if _OPTIONS.fullmatch(text):
        letters = re.findall(r"[A-J]", text)
        return "".join(letters) if len(set(letters)) == len(letters) else None
    with_text = _OPTION_AND_TEXT.fullmatch(text)
    if not with_text or re.search(r"\b[A-J]\)", with_text[4]):  # "(A) and (B)"
        return None
    if with_text[3] and _NAME.fullmatch(with_text[4]):  # "A. Lincoln"
        return None
    return with_text[1] or with_text[2] or with_text[3]


def _number_form(text: str) -> str | None:
    number = _NUMBER.fullmatch(text)
    if number:
        sign, digits, exponent = number.groups()
        value = Decimal(digits.replace(",", "") + "e" + (exponent or "0"))
        return _signed(sign, f"{value:f}")
    fraction = _FRACTION.fullmatch(text)
    if not fraction or int(fraction[3]) == 0:
        return None
    above, below = int(fraction[2]), int(fraction[3])
    with localcontext() as context:
        context.prec = 80  # enough for any fraction of 15 digits that ends
        context.traps[Inexact] = True
        try:
            return _signed(fraction[1], f"{Decimal(above) / Decimal(below):f}")
        except Inexact:
            divisor = gcd(above, below)
            return _signed(fraction[1], f"{above // divisor}/{below // divisor}")


def _signed(sign: str, digits: str) -> str:
    whole, _, part = digits.partition(".")
    part = part.rstrip("0")
    value = f"{whole}.{part}" if part else whole
    return "-" + value if sign == "-" and value != "0" else value


def _formula_form(text: str) -> str | None:
    """Formulas of digits, operators, single letters and names of functions, without spaces."""
    lower = " ".join(text.casefold().split()).replace("√", "sqrt").replace("π", "pi")
    words = re.findall(r"[^\W\d_]+", lower)
    if not all(len(word) == 1 or word in _WORDS_OF_MATH for word in words):
        return None
    if not re.search(r"[0-9+*/^=<>±!-]", lower) or not re.search(r"\w", lower) or re.search(r"[%°]", lower):
        return None
    lower = re.sub(r"(?<!\w) | (?!\w)|(?<=[0-9]) (?=[^\W\d_])", "", lower)  # "2 1/2" keeps its space
    lower = re.sub(r"(?<=[^\W\d_])\*(?!\*)|(?<!\*)\*(?=[^\W\d_])", "", lower)
    lower = re.sub(r"sqrt([0-9]+|[a-z](?![a-z]))", r"sqrt(\1)", lower)
    lower = re.sub(r"\^([0-9]{2,})", r"^(\1)", lower)
    solved = re.fullmatch(r"[a-z]=([^=<>]+)", lower)
    if solved:
        return _number_form(solved[1]) or solved[1]
    return lower


def _quantity_form(text: str) -> str | None:
    quantity = _QUANTITY.fullmatch(text)
    if not quantity:
        return None
    number = _number_form(quantity[1])
    return None if number is None else number + " ".join(quantity[2].casefold().split())
