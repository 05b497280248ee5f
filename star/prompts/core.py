"""The core content of a prompt, as character spans: what an image of it must show.

Spans (star.prompts.record) never overlap and are in order.
Kinds: object, attribute, count, relation, text. Source: ours (the paper speaks of core content; its abstract does not
say how it is found).
"""

import functools
import re

from star.errors import InputError
from star.prompts.quotes import quotations
from star.prompts.record import Span

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ATTRIBUTES = """
    red orange yellow green blue purple pink brown black white gray grey violet golden silver dark light bright
    big small large tiny huge tall short
"""
_RELATIONS = """
    left right above below under over behind beside between inside beneath underneath atop near
"""
_STOP_WORDS = """
    a an the this that these those some any each every all both either neither no nor not none such same other
    another i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself
    she her hers herself it its itself they them their theirs themselves who whom whose which what when where
    why how am is are was were be been being do does did doing done have has had having will would shall should
    can could may might must ought don't doesn't didn't isn't aren't wasn't weren't won't can't it's that's
    there's and or but if then else than so because as until while of at by for with without about against into
    onto through during before after to from up down in out on off again further once here there also just only
    very too more most much many few several own per via etc upon within across along around toward towards
    among amid photo photograph picture image painting drawing rendering background foreground scene style shot
    says say saying said reads reading word words written showing shows depicting depicts featuring featured
"""
ATTRIBUTES, RELATIONS, STOP_WORDS = (frozenset(text.split()) for text in (_ATTRIBUTES, _RELATIONS, _STOP_WORDS))
_PLURAL = "(?:e?s)?"
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")


@functools.cache  # re's own cache holds 512 patterns; GenEval's vocabulary makes more
def _whole_words(pattern: str) -> re.Pattern:
    return re.compile(rf"(?<!\w){pattern}(?!\w)", re.IGNORECASE)


class _Spans:
    """The spans found so far in one prompt; a new one never overlaps them."""

    def __init__(self, prompt: str):
        self.prompt = prompt
        self.found: list[Span] = []

    def add(self, start: int, end: int, kind: str) -> None:
        self.found.append(Span(self.prompt[start:end], start, end, kind))

    def search(self, pattern: str, wanted: str) -> re.Match:
        """The first match of `pattern` between word boundaries that is not taken yet. Raises InputError."""
        for match in _whole_words(pattern).finditer(self.prompt):
            if all(match.end() <= s.start or match.start() >= s.end for s in self.found):
                return match
        raise InputError(f"prompt {self.prompt!r} does not say {wanted!r}, which its metadata asks for")

    def ordered(self) -> tuple[Span, ...]:
        return tuple(sorted(self.found, key=lambda s: s.start))


def _phrase(item: dict) -> str:
    number = [str(item["count"])] if item["count"] > 1 else []
    return " ".join(number + [item[key] for key in ("color", "class") if key in item])


def described(prompt: str, include: list[dict]) -> tuple[Span, ...]:
    """Core spans of a prompt that was written from GenEval's metadata: objects, colours, counts above one, relations.

    Raises InputError when the prompt does not mention something of `include`.
    """
    spans = _Spans(prompt)
    for item in sorted(include, key=lambda item: -len(_phrase(item))):  # "teddy bear" takes its place before "bear"
        pattern = rf"(?P<object>{re.escape(item['class'])}{_PLURAL})"
        if "color" in item:
            pattern = rf"(?P<attribute>{re.escape(item['color'])})\s+{pattern}"
        if (count := item["count"]) > 1:
            pattern = rf"(?P<count>{count}{f'|{NUMBERS[count]}' if count < len(NUMBERS) else ''})\s+{pattern}"
        match = spans.search(pattern, _phrase(item))
        for kind in match.groupdict():
            spans.add(*match.span(kind), kind)
    for item in include:
        if "position" in item:
            relation = item["position"][0]
            spans.add(*spans.search(r"\s+".join(map(re.escape, relation.split())), relation).span(), "relation")
    return spans.ordered()


def article(words: str) -> str:
    """The words with "a" or "an" before them, by their first letter (GenEval's rule)."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(noun: str) -> str:
    """GenEval's plural: "es" after s, else "s"."""
    return noun + ("es" if noun.endswith("s") else "s")


def quoted(prompt: str, carrier: str | None = None) -> tuple[Span, ...]:
    """Core spans of a lettering prompt: the quoted words without their quotation marks, and the noun that carries them.

    Raises InputError when nothing is quoted or the carrier is not in the prompt.
    """
    spans = _Spans(prompt)
    for start, end in quotations(prompt):
        spans.add(start, end, "text")
    if not spans.found:
        raise InputError(f"prompt {prompt!r} has no word in double quotes; an ocr prompt quotes what is to be written")
    if carrier is not None:
        spans.add(*spans.search(re.escape(carrier) + _PLURAL, carrier).span(), "object")
    return spans.ordered()


def written(prompt: str, target: str) -> tuple[Span, ...]:
    """Core span of a lettering prompt that says its target without quoting it. Raises InputError when it does not say it."""
    spans = _Spans(prompt)
    spans.add(*spans.search(re.escape(target), target).span(), "text")
    return spans.ordered()


def _kind(word: str) -> str:
    if word.isdigit() or word in NUMBERS:
        return "count"
    return "attribute" if word in ATTRIBUTES else "relation" if word in RELATIONS else "object"


def content_words(prompt: str) -> tuple[Span, ...]:
    """Core spans of any English text: every word that is no stop word; empty when there is none.

    Without a grammar the kind is a guess from short word lists; whatever is in none of them counts as an object.
    """
    spans = _Spans(prompt)
    for match in _WORD.finditer(prompt):
        word = match[0].lower().replace("’", "'")
        if word not in STOP_WORDS and (len(word) > 1 or word.isdigit()):
            spans.add(*match.span(), _kind(word))
    return spans.ordered()
