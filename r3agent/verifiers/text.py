"""Compare the text of a reply exactly, normalised, or with a pattern; the last `<answer>` tags are the answer."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

from r3agent._util.imports import require_installed
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.interface import needed

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_MARKS = re.compile(r"(?P<of_a_number>(?<=\d)[^\w\s](?=\d)|\.(?=\d)|(?<!\w)-(?=\.?\d))|[^\w\s]|_")


def exact(task: Task, answer: str) -> bool:
    """Compare with `task.info["answer"]`; if that is missing, the `KeyError` is a verifier error."""
    return answer.strip() == str(needed(task, "answer")).strip()


def normalised(task: Task, answer: str, *, articles: bool = False) -> bool:
    """Compare the normalised answer with `task.info["answer"]`, a text or a list of accepted texts.

    Case, white space, articles, punctuation and Unicode variants of the same letters are ignored. The last
    `<answer>…</answer>` is compared, or the whole reply.

    Arithmetic signs and punctuation within numbers are significant: 3.5 is not 35. An answer of only punctuation or
    articles is compared unchanged.
    Source: the evaluation of SQuAD, adapted to Unicode and numbers.

    Args:
        articles: compare a, an and the too.
    """
    accepted = needed(task, "answer")
    answer = normal_form(tagged_or_all(answer), articles=articles)
    texts = accepted if isinstance(accepted, list) else [accepted]
    return any(answer == normal_form(str(text), articles=articles) for text in texts)


def normal_form(text: str, *, articles: bool = False) -> str:
    """Normalise a text as `normalised` does."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = " ".join(unicodedata.normalize("NFKC", folded).replace("\N{MINUS SIGN}", "-").split())
    bare = " ".join(_MARKS.sub(_keep, folded).split())
    without = bare if articles else " ".join(_ARTICLES.sub(" ", bare).split())
    return without or bare or folded


def _keep(mark: re.Match[str]) -> str:
    return mark[0] if mark["of_a_number"] or unicodedata.category(mark[0]) == "Sm" else ""


class Regex:
    """Match `task.info["pattern"]` with RE2.

    Its time is linear in the answer's length for any pattern; it has no look-around and no back references.

    Args:
        search: match anywhere in the reply; otherwise the pattern must match all of the last `<answer>…</answer>`, or
            of the reply if there is none.
        ignore_case: ignore upper and lower case.
        max_chars: maximum length; a longer reply fails without being matched.
    """

    def __init__(self, *, search: bool = False, ignore_case: bool = False, max_chars: int = 100_000) -> None:
        require_installed("re2", "verifiers")
        self.search, self.ignore_case, self.max_chars = search, ignore_case, max_chars

    def __call__(self, task: Task, answer: str) -> Verdict:
        """Judge an answer.

        Raises:
            re2.error: `pattern` is not a valid RE2 pattern.
        """
        pattern = _compiled(needed(task, "pattern"), self.ignore_case)
        text = answer if self.search else tagged_or_all(answer)
        if len(text) > self.max_chars:
            return Verdict(
                passed=False, score=0.0, feedback=f"{len(text)} characters; at most {self.max_chars} are looked at"
            )
        text = text.encode(errors="replace").decode()  # RE2 does not accept lone surrogates
        match = pattern.search(text) if self.search else pattern.fullmatch(text)
        return Verdict(passed=match is not None, score=float(match is not None))


@lru_cache(maxsize=256)
def _compiled(pattern: str, ignore_case: bool) -> Any:
    import re2

    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.dot_nl = False
    options.log_errors = False
    return re2.compile(pattern, options)


def tagged(reply: str) -> str | None:
    """Return the content of the last closed tag, or `None`; one pass, however many tags a hostile reply opens."""
    before, closed, _ = reply.rpartition("</answer>")
    _, opened, content = before.rpartition("<answer>")
    return content if closed and opened else None


def tagged_or_all(reply: str) -> str:
    """Return the content of the last closed tag, or the whole reply if there is none; stripped."""
    content = tagged(reply)
    return (reply if content is None else content).strip()
