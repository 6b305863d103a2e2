r"""LaTeX as plain text: `\frac{1}{\sqrt{3}}` as `1/sqrt(3)`."""

from __future__ import annotations

import re

_STYLE = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathbb|mathcal|operatorname|mbox|boldsymbol|boxed|fbox)"
    r"\s*\{([^{}]*)\}"
)
_SPACE = re.compile(r"\\(?:left|right|displaystyle|limits|quad|qquad|bigg?[lr]?|Bigg?[lr]?)(?![A-Za-z])|\\[!,;:> ]|~")
_MIXED = re.compile(r"(?<=[0-9])\s*(?=\\frac\s*\{\s*[0-9]+\s*\}\s*\{\s*[0-9]+\s*\})")
_FRACTION = re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ROOT = re.compile(r"\\sqrt\s*(?:\[([^\[\]{}]*)\])?\s*\{([^{}]*)\}")
_POWER = re.compile(r"([_^])\s*\{([^{}]*)\}")
_SYMBOLS = {
    "cdot": "*", "times": "*", "div": "/", "le": "<=", "leq": "<=", "ge": ">=", "geq": ">=", "ne": "!=", "neq": "!=",
    "pm": "±", "infty": "infinity", "circ": "°", "degree": "°",
}  # fmt: skip


def plain_math(text: str) -> str:
    r"""LaTeX as plain text. What is no LaTeX stays as it is.

    Delimiters (`$`, `\(`, `\[`), styles, spacing and grouping braces go; fractions, roots and powers get brackets where
    they need them; other commands are their names. Two different formulas keep different texts, as far as is usual:
    `2\frac{1}{2}` is `2+1/2`, and not `21/2`.
    """
    text = re.sub(r"\\[()\[\]]|\\?\$", "", text.replace("{,}", ",").replace("\\%", "%"))
    text = _SPACE.sub(" ", text).replace("\\{", "\x01").replace("\\}", "\x02")
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*([^\s{\\])", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*([^\s{\\])", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*([^\s{\[\\])", r"\\sqrt{\1}", text)
    text = _MIXED.sub("+", text)
    before = ""
    while text != before:  # from the inside out
        before = text
        text = _STYLE.sub(r"\1", text)
        text = _ROOT.sub(lambda root: f"{'root' + root[1] if root[1] else 'sqrt'}({root[2].strip()})", text)
        text = _POWER.sub(lambda power: power[1] + _bracketed(power[2]), text)
        text = _FRACTION.sub(_divided, text)
    text = re.sub(r"\\([A-Za-z]+)", lambda name: _SYMBOLS.get(name[1], name[1]), text)
    text = re.sub(r"[{}]", "", text).replace("\x01", "{").replace("\x02", "}")
    return text.replace("^°", "°")


def balanced(text: str, start: int) -> str | None:
    """What stands between the brace at `start` and the one that closes it; None where none does."""
    depth = 0
    for brace in re.compile(r"\\?[{}]").finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start + 1 : brace.start()]
    return None


def _bracketed(text: str) -> str:
    text = text.strip()
    return text if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?|\w|[a-z]+\([^()]*\)", text) else f"({text})"


def _divided(fraction: re.Match[str]) -> str:
    text = f"{_bracketed(fraction[1])}/{_bracketed(fraction[2])}"
    follows = fraction.string[fraction.end() :].lstrip()[:1]
    before = fraction.string[: fraction.start()].rstrip()[-1:]
    return ("*" if before.isalnum() else "") + text + ("*" if follows.isdigit() else "")
