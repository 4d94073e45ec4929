"""Read answers of mathematics as people write them: numbers with a unit, a currency or a percent sign, and Markdown.

A number is read exactly, as 1,000.5, 10 000, 1e-05, 3/4, 1 1/2, -$5, 5 million, 50 % or 1001_2, with a unit of words or
symbols after it. A comma is a thousands separator, never a decimal point. Anything else is left to math-verify.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
CURRENCIES = {
    **dict.fromkeys(("$", "dollar", "dollars", "usd"), "dollar"),
    **dict.fromkeys(("¢", "cent", "cents"), "cent"),
    **dict.fromkeys(("€", "euro", "euros", "eur"), "euro"),
    **dict.fromkeys(("£", "gbp"), "pound sterling"),
    **dict.fromkeys(("¥", "yen", "jpy"), "yen"),
    **dict.fromkeys(("₹", "rupee", "rupees", "inr"), "rupee"),
}
CHANGES = frozenset(
    {
        *("or", "not", "no", "plus", "minus", "times", "over", "mod", "modulo", "choose", "factorial", "squared"),
        *("cubed", "pi", "sqrt", "root", "sin", "cos", "tan", "log", "ln", "exp", "infinity", "less", "more", "than"),
        *("least", "half", "halves", "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths"),
        *("score", *SCALES),
    }
)
"""Words that make another number, or several, of the number beside them."""
NO_UNITS = CHANGES - {"times"} | {"and", "but", "if", "to", "of", "from", "is", "by", "where", "when"}
LETTERS = frozenset("msghlLNJWVAKCF°$€£¥₹¢Ω")
"""Units of one letter; any other letter after a number is a variable."""
JOINED = frozenset(
    {
        *("nm", "mm", "cm", "dm", "km", "mg", "kg", "ml", "mL", "ft", "mi", "lb", "lbs", "oz"),
        *("ms", "sec", "min", "hr", "hrs", "mph", "kph", "m/s", "km/h", "Hz", "kHz"),
    }
)
"""Units that may follow a number without a space, where other letters are variables."""

MAX_DIGITS = 1000
"""Maximum length of a part of a number; longer ones are left to math-verify."""

_CHARACTERS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{NO-BREAK SPACE}": " ",
        "\N{NARROW NO-BREAK SPACE}": " ",
        "\N{THIN SPACE}": " ",
        **dict(zip("½⅓⅔¼¾", (" 1/2", " 1/3", " 2/3", " 1/4", " 3/4"), strict=True)),
    }
)
_NAMES = {"∞": "infty", "π": "pi", "×": "times", "·": "cdot", "⋅": "cdot", "÷": "div", "≤": "le", "≥": "ge"}
_SYMBOLS = str.maketrans({mark: rf"\{name} " for mark, name in _NAMES.items()})
_RAISED = {mark: str(power) for power, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {"⁻": "-"}
_POWER = re.compile(f"[{''.join(_RAISED)}]+")
_SPELLINGS = (
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\s*(-?\d+)"), r"^{\1}"),
    (re.compile(r"(?<=\d)\s*[xX*]\s*(?=10\s*\^)"), r"\\times "),
    (re.compile(r"(?<![\\A-Za-z])((?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp)(?=\s*[(\\\d^]|\s+[a-z]\b)"), r"\\\1"),
    (
        re.compile(r"(\\(?:sin|cos|tan))\s*[({]?\s*(\d+)\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°)\s*[)}]?"),
        r"\1(\\frac{\2\\pi}{180})",
    ),
    (re.compile(r"\\varnothing"), r"\\emptyset"),
    (re.compile(r"\\langle\b"), "("),
    (re.compile(r"\\rangle\b"), ")"),
)
"""Forms of LaTeX that math-verify reads, by plain and rarer ones."""
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|\w))")
_MARKDOWN = re.compile(
    r"\*\*([^*\n]+)\*\*|__([^_\n]+)__|```\w*\n([^`]*)\n\s*```|`([^`\n]+)`|(?<!\S)\*([^*\s]+)\*(?!\S)|(?<!\S)_([^_\s]+)_(?!\S)"
)
_SCIENTIFIC = re.compile(r"(?<![\w.])\d+(?:\.\d*)?[eE][+-]?\d{1,2}(?!\w)(?!\.\d)")
_CHOICE = re.compile(r"\(?([A-H])[).:]\s+\S.*")
_LAST_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_JOINING = re.compile(r"[\s$.]*(?:,|;|and|or|\\text\{\s*(?:and|or)\s*\}|\\quad)?[\s$]*")
_WORDS_IN_LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_ROMAN = re.compile(r"\\(?:mathrm|mathbf)\s*(\{[ei]\})")
_SPACES_IN_LATEX = re.compile(r"\\[,;:! ]|~")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
_TEMPERATURE = re.compile(r"\s*(?:°|degrees?)\s*([CF])(?:elsius|ahrenheit)?\b")
_BASE = re.compile(r"\$?(\d+)_\{?(\d+)\}?\$?")
_REPEATING = re.compile(r"\$?(-?)(\d*)\.(\d*)\\overline\s*(?:\{(\d+)\}|(\d))\$?")
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DAY = re.compile(rf"\b{_MONTH}\s+\d|\d(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}\s*(?:,?\s*\d+)?\.?$", re.IGNORECASE)
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?:\.\d*)?(?:[eE][+-]?\d{1,4})?|\.\d+(?:[eE][+-]?\d{1,4})?"
_HUGE = re.compile(r"[eE][+-]?\d{4}")
_WORD = r"[A-Za-zµΩ°$€£¥₹¢][A-Za-z'-]*\.?(?:\s?\^(?:\{-?\d\}|-?\d)|\d)?"
_UNIT = rf"{_WORD}(?:(?:\s*[/*·⋅]\s*|\s+){_WORD}){{0,5}}"
_QUANTITY = re.compile(
    r"(?:(?:[=≈~]|\\approx\b)\s*)?(?P<sign>[+-]?)\s*(?P<currency>[$€£¥₹]|(?:USD|EUR|GBP|JPY|INR)\s)?\s*(?P<inner>-?)\s*"
    rf"(?:(?:(?P<whole>\d+)\s+)?(?P<top>\d+)\s*/\s*(?P<bottom>\d+)|(?P<number>{_NUMBER}))"
    rf"(?:\s*(?P<percent>\\?%|(?i:per ?cent|pct)\b))?(?P<unit>\s*{_UNIT})?\s*\.?",
    re.ASCII,
)
_STATED = re.compile(r".*\b(?:answer|result|total|value)\s*(?:is|are|was|:|=)\s*:?\s*(\S.*)", re.DOTALL | re.IGNORECASE)
_SENTENCE = re.compile(rf"[A-Za-z,.:;'()$€£¥\s]*(-?(?:{_NUMBER})%?)[A-Za-z,.:;'()€£¥\s]*")
_ALTERNATIVES = re.compile(
    r"\d\S*+(?:\s+\w+){0,2}?,?\s+or\s+(?:\w+\s+)?(?:\w\s*=\s*)?[-$\\(]*\d[^\s]*(?:\s+\w+){0,2}\W*$"
)


@dataclass(frozen=True)
class Reading:
    """Answer as it was read."""

    text: str
    """Text for math-verify, unless `number` is given."""
    is_answer: bool = True
    """The text is an answer, not a reply that contains one."""
    number: str = ""
    """An integer, a fraction or a decimal; empty if the answer is something else."""
    is_percent: bool = False
    unit: str = ""
    is_several: bool = False
    """The reply has several candidates for one answer."""


def read_answer(text: str) -> Reading:
    """Read a text that is an answer and nothing else: an expected one, or the content of tags or of a box."""
    plain = _without_markdown(text).rpartition("####")[2].strip()
    if date := _DATE.fullmatch(plain):
        return Reading(f"({', '.join(date.groups())})")
    box = last_box(plain)
    if box is not None:
        return read_answer(box)
    lines = [line for line in plain.splitlines() if line.strip()]
    if len(lines) > 1 and all(map(_quantity, lines)):
        return Reading(", ".join(lines))
    if found := _quantity(plain):
        return found
    if choice := _CHOICE.fullmatch(plain):
        return Reading(choice[1])
    if stated := _STATED.match(plain):
        return read_answer(stated[1])
    if found := _in_sentence(plain):
        return found
    latex = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", plain).translate(_SYMBOLS)
    for spelling, form in _SPELLINGS if r"\text" not in latex else ():
        latex = spelling.sub(form, latex)
    return Reading(_written_out(latex), is_several=_ALTERNATIVES.search(plain) is not None)


def read_reply(text: str) -> Reading:
    """Read a reply that contains an answer: in the last box, in a last line `#### …`, or where math-verify finds it."""
    plain = _without_markdown(text).rstrip()
    line = plain.rpartition("\n")[2]
    if line.lstrip().startswith("####"):
        return read_answer(line)
    box = last_box(plain)
    if box is not None:
        return read_answer(box)
    return _quantity(plain) or Reading(
        _written_out(plain), is_answer=False, is_several=_ALTERNATIVES.search(line) is not None
    )


def _without_markdown(text: str) -> str:
    plain = _MARKDOWN.sub(lambda mark: "".join(filter(None, mark.groups())), text.translate(_CHARACTERS))
    return _POWER.sub(lambda power: f"^{{{''.join(_RAISED[mark] for mark in power[0])}}}", plain)


def last_box(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}`, or `None` without one, or if it is one of several joined boxes."""
    starts = [*_LAST_BOX.finditer(text)][-2:]
    last = _braced(text, starts[-1].end()) if starts else None
    before = _braced(text, starts[0].end()) if len(starts) == 2 else None
    if last is None or before is None or before.strip() == last.strip():
        return last
    end, begin = starts[0].end() + len(before) + 1, starts[1].start()
    return None if end <= begin and _JOINING.fullmatch(text, end, begin) else last


def _braced(text: str, start: int) -> str | None:
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start:place]
    return None


def _quantity(text: str) -> Reading | None:
    """Read a number with what belongs to it."""
    plain = text.strip()
    for mark in ("$$", "$"):
        if len(plain) > 2 * len(mark) and plain.startswith(mark) and plain.endswith(mark):
            plain = plain.removeprefix(mark).removesuffix(mark)
    plain = _SPACES_IN_LATEX.sub(" ", _DEGREES.sub(" degrees", plain.replace(r"\$", "$")))
    if based := _BASE.fullmatch(plain):
        return Reading(plain, number=based[1], unit=f"base {based[2]}")
    if repeating := _REPEATING.fullmatch(plain):
        return Reading(plain, number=_repeating(*repeating.groups("")))
    plain = " ".join(_WORDS_IN_LATEX.sub(r" \1 ", plain).split())
    plain = _TEMPERATURE.sub(lambda scale: " celsius" if scale[1] == "C" else " fahrenheit", plain)
    match = None if _DAY.search(plain) else _QUANTITY.fullmatch(plain)
    if match is None or (match["bottom"] and int(match["bottom"]) == 0):
        return None
    if any(len(part) > MAX_DIGITS for part in match.groups("")):
        return None
    words = (match["unit"] or "").strip().split(" ")
    scale = SCALES.get(words[0].lower(), 1)
    if scale != 1 and _HUGE.search(match["number"] or ""):  # Python writes out no integer of so many digits
        return None
    words = words[1:] if scale != 1 else words
    unit = " ".join(words).strip(" .")
    if not _is_unit(unit, is_joined=not (match["unit"] or " ").startswith(" ")):
        return None
    sign = "-" if (match["sign"] == "-") != (match["inner"] == "-") else ""
    if match["number"]:
        number = re.sub("[, ]", "", match["number"])
        number = str(Fraction(number) * scale) if scale != 1 else number
    else:
        number = str((int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))) * scale)
    return Reading(
        text.strip(),
        number=sign + number,
        is_percent=match["percent"] is not None,
        unit=CURRENCIES.get(unit.lower(), unit) or CURRENCIES.get((match["currency"] or "").strip().lower(), ""),
    )


def _repeating(sign: str, whole: str, head: str, *tails: str) -> str:
    """Return the fraction that a decimal with repeating digits is."""
    tail = "".join(tails)
    value = Fraction(int(f"{whole}{head}{tail}") - int(f"0{whole}{head}"), 10 ** len(head) * (10 ** len(tail) - 1))
    return f"{sign}{value}"


def _in_sentence(text: str) -> Reading | None:
    """Read the only number of a text whose words do not change it."""
    words = {word.lower() for word in re.findall("[A-Za-z]+", text)}
    match = _SENTENCE.fullmatch(text)
    if match is None or words & CHANGES or _DAY.search(text) or all(len(word) == 1 for word in words):
        return None
    return _quantity(match[1])


def _is_unit(unit: str, *, is_joined: bool) -> bool:
    words = [word for word in re.split(r"[^A-Za-zµΩ°$€£¥₹¢]+", unit) if word]
    if is_joined and unit not in JOINED and not all(word in LETTERS - {*"msghlLNJWVAKCF"} for word in words):
        return False
    return all(word in LETTERS if len(word) == 1 else word.lower() not in NO_UNITS for word in words)


def _written_out(text: str) -> str:
    """Rewrite forms that math-verify does not read: 1e-05, a product with e there, and e and i in roman type."""
    text = _ROMAN.sub(r"\1", text)
    return _SCIENTIFIC.sub(lambda number: format(Decimal(number[0]), "f"), text)
