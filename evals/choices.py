"""Which option a reply means, read as a careful person would; None where it names none, or more than one.

What the reply declares (`extract.declared_answer`) is read first and alone. Otherwise prose is read by sentences:

1. the last sentence that concludes ("the answer is", "I choose", "so", "must be", "答案"): what follows its last cue;
2. sentences and lines that are nothing but an option ("B", "(C).", "Option D"): they have to agree;
3. a reply that opens with an option and a delimiter ("C) they are equal", "B because …"): that option;
4. the last sentence, then the whole reply: the option, if exactly one is named and ends its clause, or is called one;
5. the same by the texts of the options.

A letter is no option where it is an article or a pronoun ("A person", "I see"), part of a word or an abbreviation
("N/A", "DVD"), a name ("vitamin C", "point B"), negated ("not B", "C is ruled out"), or asked for ("Is it B?"). Lower
case counts only where nothing else can be meant: alone, in brackets, or after "option" or "answer is".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .extract import declared_answer, trim, visible

_WINDOW = 80
"""Characters around an option in which a negation is looked for."""

_ANSWER = (
    r"answers?|solution|r[ée]ponse|respuesta|resposta|risposta|antwort(?:en)?|antwoord|svaret?|cevap|jawaban|"
    r"ответ|उत्तर|الإجابة|الجواب|答案|答え|答|正解|正确|选择|选|정답|답"
)
_AFTER_PRONOUN = re.compile(r"\s+(?:is|was|and|or|because|since|matches|fits|shows|seems|appears|correct)\b")
_WORD = re.compile(r"\s+[A-Za-zÀ-ɏЀ-ӿ]")
_CUE = re.compile(
    rf"(?:\b(?:{_ANSWER})|答案|答え|正解|正确|选择|选|정답|답|"
    r"\b(?:(?:correct|right|best|final|my)\s+(?:final\s+)?(?:option|choice|letter|one|statement|figure|image)|"
    r"(?:i|i'd|i'll|we|would)\s+(?:would\s+|will\s+)?(?:choose|pick|select|go)|go(?:ing)? with|choose|pick|"
    r"must be|has to be|conclude|conclusion|so|therefore|thus|hence|consequently|then))(?![a-z])",
    flags=re.IGNORECASE,
)
# A noun that makes the next letter a label: "option A shows" is no article.
_NOUN = r"(?:options?|choices?|answers?|figures?|images?|pictures?|diagrams?|letters?|case|opción|opção|选项|图)"
_NAME_BEFORE = re.compile(
    r"\b(?:vitamin|hepatitis|points?|vert(?:ex|ices)|angles?|sides?|nodes?|types?|grade|plan|class|degrees?)\s+$",
    re.IGNORECASE,
)
_NOUN_BEFORE = re.compile(rf"{_NOUN}\s*(?:is|are|=|:|-)?\s*[(\[\"'“]*$", flags=re.IGNORECASE)
_LOWER_BEFORE = re.compile(rf"(?:\b{_NOUN}|\b(?:answer|option|choice)\s+(?:is|would be))\s*[:=-]?\s*$", re.IGNORECASE)
_LETTER = re.compile(r"(?<![^\W_])(?<!['’^\\])(?<!\w[.-])([A-Za-z])(?![^\W_]|['’^])")
_SPELLED = re.compile(r"(?<!\S)[A-Z](?: [A-Z]){2,}(?!\S)")
_ABBREVIATION = re.compile(r"\b[Nn]/[Aa]\b|\b(?:[A-Z]\.){2,}(?!\s*[A-Z]\b)|\b[ei]\.[eg]\.")
_GLUED = re.compile(r"\b(answer|option|choice|is)([A-Z])\b|\b([A-Z])(because|since)\b", flags=re.IGNORECASE)
_CJK = re.compile(r"(?<=[\u0e00-\u9fff\uac00-\ud7af])(?=[A-Za-z])|(?<=[A-Za-z])(?=[\u0e00-\u9fff\uac00-\ud7af])")
# After an article or a pronoun comes a noun, an adjective or "am"; after a label one of these.
_AFTER_LABEL = re.compile(
    r"\s+(?:is|are|was|were|be|and|or|not|because|since|as|for|given|with|from|in|on|at|by|to|but|than|then|if|which|"
    r"that|only|also|has|have|had|does|do|can|could|cannot|may|might|must|will|would|should|seems?|looks?|appears?|"
    r"match(?:es)?|fits?|shows?|agrees?|follows|remains|works|wins|here|there|correct|wrong|incorrect|instead|"
    r"et|ou|est|y|o|es|e|é|und|oder|ist|и|или)\b",
    flags=re.IGNORECASE,
)
_NOT_BEFORE = re.compile(
    r"(?:\b(?:not|cannot be|never|nor|neither|no|without|except|unlike|rather than|instead of|exclude[sd]?|"
    r"eliminate[sd]?|rules? out|não|nicht|pas|kein|не)|n't(?: be)?|不是|不|非)\s*(?:(?:the|an?|be|in|really)\s+)*"
    rf"(?:{_NOUN}\s*)?(?:\(?[a-z]\)?\s+(?:and|or|nor)\s+)?(?:{_NOUN}\s*)?[(\[\"'“]*$",
    flags=re.IGNORECASE,
)
_NOT_AFTER = re.compile(
    r"^[)\]\"'”]*(?:\s*(?:,|and\b|or\b|&)\s*\(?[A-Z]\b\)?)*\s*[:=]?\s*"
    r"(?:(?:is|are|was|were|can be|could be|has been|must be|seems|looks|being)\s+)?"
    r"(?:(?:clearly|definitely|also|certainly|both|all|simply)\s+)?"
    r"(?:not\b|isn't|doesn't|does not|cannot|can't|wrong|incorrect|excluded|ruled out|eliminated|impossible|false|"
    r"too\s|implausible|would (?:require|need|mean))",
    flags=re.IGNORECASE,
)
_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed|bf|rm)(?![a-z])|\\[()\[\]]")
_MARKUP = str.maketrans(dict.fromkeys("*_`$#|<>{}~\\", " "))
_REASON = re.compile(r"\b(?:because|since|whereas|while|although|though|unlike)\b", re.IGNORECASE)
# What follows takes the place of what was said before: "B, no, C".
_CORRECTION = re.compile(
    r"[,;—–-]\s*(?:(?:no|wait|sorry|actually|correction)\s*[,;:—–-]|i mean\b|or rather\b|不对|不是)", re.IGNORECASE
)
_SENTENCE = re.compile(r"\n+|(?<=[.!?;。！？])\s+|(?<=[。！？])")
_TRIMMED = " \t.,;:!?()[]\"'“”‘’«»【】、。=-…"
_OPENING = re.compile(r"[\s(\[\"'“【]*([A-Za-z])\s*(?:[)\]】\"'”]|[.:,;=)—–-](?!\w)|[=:]|\s+because\b|\s+since\b)")


class Choice(NamedTuple):
    """The letters that were read (None: no answer) and the rule that read them."""

    letters: str | None
    method: str


class _Mention(NamedTuple):
    start: int
    end: int
    letter: str


def read_choice(reply: str, choices: Mapping[str, str]) -> Choice:
    """The one option of `choices` (text by letter; empty texts are not looked for) that `reply` means.

    >>> colours = {"A": "red", "B": "green", "C": "blue"}
    >>> read_choice("Because the sign is red, the answer is C.", colours)
    Choice(letters='C', method='concluded')
    >>> read_choice("It is green.", colours)
    Choice(letters='B', method='text of an option')
    >>> read_choice("B or C", colours)
    Choice(letters=None, method='more than one option')
    """
    letters, method = _read(reply, choices)
    if len(letters) == 1:
        return Choice(letters, method)
    return Choice(None, "more than one option" if letters else method)


def read_choices(reply: str, choices: Mapping[str, str]) -> Choice:
    """All options that `reply` means, in alphabetical order: for questions with several right ones. "AC" is a list."""
    letters, method = _read(reply, choices, several=True)
    return Choice(letters or None, method)


def _read(reply: str, choices: Mapping[str, str], several: bool = False) -> tuple[str, str]:
    text = visible(reply)
    if text is None:
        return "", "thinking never ended"
    declared = declared_answer(text)
    if declared is None:
        return _in_prose(text, choices, several)
    letters, _ = _in_prose(declared, choices, several)
    if not letters and (opening := re.match(r"([A-Z])-", declared)) and opening[1] in choices:
        letters = opening[1]
    return letters, "declared" if letters else "declared no option"


def _in_prose(text: str, choices: Mapping[str, str], several: bool) -> tuple[str, str]:
    alone = trim(text)
    if not alone.endswith("?") and text.rstrip().endswith("?") and len(alone) < 4:
        return "", "a question"
    if len(alone) == 1 and alone.upper() in choices:
        return alone.upper(), "the whole reply"
    if by_text := _same_text(alone, choices):
        return by_text, "text of an option"
    plain = _plain(text)
    if several and (listed := _run_together(plain, choices)):
        return listed, "a list"
    sentences = [s for s in _SENTENCE.split(plain) if s.strip(_TRIMMED)]
    named = [(s, _corrected(s, list(_mentions(s, choices)))) for s in sentences]
    for rule, method in ((_concluded, "concluded"), (_bare, "nothing but an option"), (_opening, "opens with")):
        if letters := rule(named):
            return letters, method
    for scope in (named[-1:], named):
        letters = _distinct([mention for _, mentions in scope for mention in mentions])
        if len(letters) > 1 or any(_stands_out(s, mention) for s, mentions in scope for mention in mentions):
            return letters, "the only option named"
    return _by_texts(sentences, choices), "text of an option"


def _plain(text: str) -> str:
    """`text` without markdown and LaTeX, glued words apart, and without what only looks like letters of options."""
    text = _COMMAND.sub(" ", text).translate(_MARKUP)
    text = _GLUED.sub(lambda m: " ".join(part for part in m.groups() if part), text)
    text = _SPELLED.sub(" ", _ABBREVIATION.sub(" ", text))
    return _CJK.sub(" ", text)


def _mentions(sentence: str, choices: Mapping[str, str]) -> Iterator[_Mention]:
    """Letters of options that the sentence stands by. A question stands by none."""
    if sentence.rstrip(" )\"'”]").endswith("?"):
        return
    for match in _LETTER.finditer(sentence):
        before = sentence[max(0, match.start() - _WINDOW) : match.start()]
        after = sentence[match.end() : match.end() + _WINDOW]
        letter = match[1].upper()
        if letter not in choices or not _is_label(match[1], before, after, choices[letter]):
            continue
        if not _NOT_BEFORE.search(before) and not _NOT_AFTER.search(after):
            yield _Mention(match.start(), match.end(), letter)


def _corrected(sentence: str, mentions: list[_Mention]) -> list[_Mention]:
    corrections = list(_CORRECTION.finditer(sentence)) if len(mentions) > 1 else []
    after = [mention for mention in mentions if corrections and mention.start >= corrections[-1].end()]
    return after or mentions


def _is_label(letter: str, before: str, after: str, text: str) -> bool:
    bracketed = before.endswith(("(", "[", "【")) and after.startswith((")", "]", "】"))
    if letter.islower():
        if bracketed:
            return not re.search(r"\w[(\[]$", before)
        return bool(_LOWER_BEFORE.search(before)) and not re.match(r"\s+\w", after)
    if _NAME_BEFORE.search(before):
        return False
    if letter not in "AI" or bracketed or not _WORD.match(after):
        return True
    own_text = bool(text) and after.casefold().lstrip().startswith(text.casefold())
    follows = _AFTER_LABEL if letter == "A" else _AFTER_PRONOUN
    return own_text or bool(follows.match(after) or _NOUN_BEFORE.search(before))


def _concluded(named: list[tuple[str, list[_Mention]]]) -> str:
    for sentence, mentions in reversed(named):
        cues = list(_CUE.finditer(sentence)) if mentions else []
        if cues:
            after = [mention for mention in mentions if mention.start >= cues[-1].end()]
            reason = _REASON.search(sentence, cues[-1].end())
            stated = [mention for mention in after if reason is None or mention.end <= reason.start()]
            return _distinct(stated or after or mentions)
    return ""


def _bare(named: list[tuple[str, list[_Mention]]]) -> str:
    """Options that are all of their sentence, but for a noun ("Option B.")."""
    bare = []
    for sentence, mentions in named:
        if len(mentions) == 1:
            rest = sentence[: mentions[0].start] + sentence[mentions[0].end :]
            if re.fullmatch(rf"{_NOUN}?", rest.strip(_TRIMMED), flags=re.IGNORECASE):
                bare += mentions
    return _distinct(bare)


def _opening(named: list[tuple[str, list[_Mention]]]) -> str:
    if not named or not named[0][1]:
        return ""
    sentence, mentions = named[0]
    opening = _OPENING.match(sentence)
    if opening is None or opening.start(1) != mentions[0].start:
        return ""
    listed = len(mentions) > 1 and not sentence[mentions[0].end : mentions[1].start].strip(_TRIMMED)
    return "" if listed else mentions[0].letter


def _stands_out(sentence: str, mention: _Mention) -> bool:
    """Whether the letter ends its clause or is called an option; others are names of things as often as answers."""
    ends = not re.match(r"[)\]\"'”]*\s*\w", sentence[mention.end : mention.end + _WINDOW])
    return ends or bool(_NOUN_BEFORE.search(sentence[max(0, mention.start - _WINDOW) : mention.start]))


def _distinct(mentions: list[_Mention]) -> str:
    return "".join(sorted({mention.letter for mention in mentions}))


def _run_together(plain: str, choices: Mapping[str, str]) -> str:
    """ "AC", "C A" or "A/C" as a whole: different letters of options and nothing else."""
    letters = re.sub(r"[\s,/&+、.()\[\]]|\band\b", "", plain)
    if 1 < len(letters) == len(set(letters)) and set(letters) <= set(choices):
        return "".join(sorted(letters))
    return ""


def _same_text(text: str, choices: Mapping[str, str]) -> str:
    """The options whose whole text is `text`, or whose letter and text are, without a space between them."""
    wanted = _squeezed(text)
    texts = {letter: _squeezed(option) for letter, option in choices.items() if option}
    same = "".join(letter for letter, option in texts.items() if option == wanted)
    return same or "".join(
        letter for letter, option in texts.items() if letter + option == wanted[:1].upper() + wanted[1:]
    )


def _by_texts(sentences: list[str], choices: Mapping[str, str]) -> str:
    """The option whose text alone occurs, not negated: in the last sentence that has any, else nowhere."""
    texts = {letter: _squeezed(text) for letter, text in choices.items() if len(_squeezed(text)) > 1}
    for sentence in reversed(sentences):
        if sentence.rstrip().endswith("?"):
            continue
        found = _occurring(_squeezed(sentence), texts)
        if found:
            return found
    return ""


def _occurring(sentence: str, texts: Mapping[str, str]) -> str:
    """Options whose text occurs as words, longest texts first, each stretch of the sentence counted once."""
    found: set[str] = set()
    for letter, text in sorted(texts.items(), key=lambda item: -len(item[1])):
        for match in re.finditer(rf"(?<![\w-]){re.escape(text)}(?![\w-])", sentence):
            before, after = sentence[: match.start()][-_WINDOW:], sentence[match.end() :][:_WINDOW]
            determiner = text == "no" and re.match(r"\s+\w", after)  # "there is no answer"
            if not determiner and not _NOT_BEFORE.search(before) and not _NOT_AFTER.search(after):
                found.add(letter)
        sentence = sentence.replace(text, "\N{WHITE SQUARE}")
    return "".join(sorted(found))


def _squeezed(text: str) -> str:
    return " ".join(trim(text).casefold().split())
