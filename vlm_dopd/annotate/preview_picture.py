"""A preview -> one PNG, for chats, papers and terminals without a browser. Nothing is cut: the picture grows.

Fonts: DejaVu, which comes with matplotlib; what it lacks is taken from the fonts of the machine, and what those lack
is written as `U+65E5` and named in the line that `write_picture` returns.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from .preview import VISION, Piece, Preview, Prompt
from .preview_page import GRADES, ORIGINS, VIEWS, runs

SIZE, LINE = 13, 20
"""px of the letters and of a line"""
COLUMN, GAP, MARGIN, PADDING = 430, 20, 24, 14
THUMBNAIL, ENLARGED, TALLEST = (58, 44), 240, 420
"""px: of an image within the text; below it, the width of small ones and the height of tall ones"""

PAGE, CARD, INK, MUTED, RULE = "#fcfbf9", "#ffffff", "#1d1c1a", "#67635c", "#e3dfd7"
STUDENT, TEACHER, BAD, P, TOKEN = "#00795c", "#8a3f7f", "#b3401a", "#fff2c9", "#eeebe4"

FONTS_FOR = {
    **dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"), "Noto Sans CJK"),
    **dict.fromkeys(("EMOJI",), "Noto Emoji or Symbola"),
}
"""What to install for the characters whose names begin so; for all others it is Noto Sans."""


def write_picture(preview: Preview, path: Path) -> str:
    """Draw `preview` and return what could not be drawn, in one line; nothing if all of it was."""
    fonts = Fonts()
    head = [*_head(preview, fonts)]
    columns = [_column(preview, index, fonts) for index in range(3)]
    width = 2 * MARGIN + 3 * COLUMN + 2 * GAP
    rows = [row for words in head for row in _wrapped(words, width - 2 * MARGIN)]
    top = MARGIN + sum(row.height for row in rows) + 16
    heights = [sum(row.height for row in column) + 2 * PADDING for column in columns]
    image = Image.new("RGB", (width, top + max(heights) + MARGIN), PAGE)
    canvas = ImageDraw.Draw(image)
    _draw(image, canvas, rows, MARGIN, MARGIN)
    for index, column in enumerate(columns):
        left = MARGIN + index * (COLUMN + GAP)
        canvas.rectangle((left, top, left + COLUMN - 1, top + max(heights) - 1), fill=CARD, outline=RULE)
        canvas.rectangle((left, top, left + COLUMN - 1, top + 3), fill=TEACHER if index == 2 else STUDENT)
        _draw(image, canvas, column, left + PADDING, top + PADDING)
    image.save(path, format="PNG", optimize=True)
    return fonts.complaint()


@dataclass(frozen=True, kw_only=True)
class Word:
    """What is never broken, except a text that is longer than a whole line; `end` breaks the line after it."""

    text: str = ""
    font: ImageFont.FreeTypeFont | None = None
    ink: str = INK
    paper: str = ""
    image: Image.Image | None = None
    end: bool = False

    @functools.cached_property
    def width(self) -> float:
        """In px, without the space after it."""
        return self.image.width if self.image else self.font.getlength(self.text) if self.font else 0.0

    def split(self, room: float) -> tuple[Word, Word]:
        """The most characters that fit into `room` px, but at least one, and the rest."""
        assert self.font
        count = next((n for n in range(len(self.text), 1, -1) if self.font.getlength(self.text[:n]) <= room), 1)
        rest = {"font": self.font, "ink": self.ink, "paper": self.paper}
        return Word(text=self.text[:count], **rest), Word(text=self.text[count:], end=self.end, **rest)  # type: ignore[arg-type]


@dataclass
class Row:
    """One line of words."""

    words: list[Word] = field(default_factory=list)

    @property
    def height(self) -> int:
        """In px, that of its tallest image or of a line of text."""
        return max([LINE, *(word.image.height + 6 for word in self.words if word.image)])


class Fonts:
    """For every character the first font that has it. Remembers those that no font has."""

    def __init__(self) -> None:
        self.missing: dict[str, None] = {}
        self.right_to_left = False

    def words(self, text: str, ink: str = INK, paper: str = "", bold: bool = False) -> Iterator[Word]:
        """`text`, of one line, cut after spaces and where the font changes."""
        self.right_to_left |= any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
        stretch = ""
        last: str | None = None
        for c in text:
            path = self._path(c, bold)
            if stretch and (path != last or (stretch[-1] == " " and c != " ") or _wide(stretch[-1])):
                yield self._word(stretch, last, ink, paper)
                stretch = ""
            stretch, last = stretch + c, path
        if stretch:
            yield self._word(stretch, last, ink, paper)

    def complaint(self) -> str:
        """One line on what the fonts of this machine cannot show."""
        lines = []
        if self.missing:
            scripts = sorted({_script(c) for c in self.missing})
            need = sorted({FONTS_FOR.get(script, f"Noto Sans for {script.title()}") for script in scripts})
            shown = "".join(list(self.missing)[:20]) + ("…" if len(self.missing) > 20 else "")
            lines.append(
                f"{len(self.missing)} characters are written as numbers, no font on this machine has them: {shown} "
                f"({', '.join(script.title() for script in scripts)}); install {', '.join(need)}"
            )
        if self.right_to_left and not (features.check("raqm") and features.check("fribidi")):
            lines.append("right-to-left text is drawn from left to right; install the library fribidi")
        return "; ".join(lines)

    def _path(self, c: str, bold: bool) -> str | None:
        own = (path for path in (_dejavu(bold), _dejavu(False)) if ord(c) in _glyphs(path))
        found = next(own, None) or next((path for path in _installed() if ord(c) in _glyphs(path)), None)
        if found is None:
            self.missing.setdefault(c)
        return found

    def _word(self, text: str, path: str | None, ink: str, paper: str) -> Word:
        if path is None:
            text = " ".join(f"U+{ord(c):04X}" for c in text) + " "
            return Word(text=text, font=_font(_dejavu(False)), ink=BAD, paper=paper)
        return Word(text=text, font=_font(path), ink=ink, paper=paper)


@functools.cache
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, SIZE)


@functools.cache
def _dejavu(bold: bool) -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf")


@functools.cache
def _installed() -> tuple[str, ...]:
    """The fonts of this machine; `Regular` ones and sans serifs first. Read anew: a cached list may be older."""
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(findSystemFonts(), key=lambda path: ("Regular" not in path, "Sans" not in path, path)))


@functools.cache
def _glyphs(path: str) -> frozenset[int]:
    """The characters of a font, none of one that cannot be scaled."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):  # a file that is no font, or of colour bitmaps
        return frozenset()


def _wide(c: str) -> bool:
    return unicodedata.east_asian_width(c) in ("W", "F")


def _script(c: str) -> str:
    name = unicodedata.name(c, "UNKNOWN").split()[0]
    return "EMOJI" if unicodedata.category(c) == "So" else name


def _head(preview: Preview, fonts: Fonts) -> Iterator[list[Word]]:
    """The lines above the columns."""
    left_out = f" · {preview.left_out} left out by a limit of the builder" if preview.left_out else ""
    grade = f"discloses {preview.discloses or '?'}: {GRADES.get(preview.discloses, '')}"
    placed = f"placed {preview.placement.replace('_', ' ')}"
    yield [*_plain(preview.sample_id, fonts, bold=True)]
    yield [*_plain(preview.fate, fonts, ink=STUDENT if preview.trained_with_p else BAD, bold=True)]
    yield [*_plain(f"{preview.builder}, {placed} · {grade}{left_out}", fonts, ink=MUTED)]
    for problem in preview.problems:
        yield [*_plain(f"Problem: {problem}", fonts, ink=BAD, bold=True)]


def _column(preview: Preview, index: int, fonts: Fonts) -> list[Row]:
    prompt = preview.prompts[index]
    width = COLUMN - 2 * PADDING
    rows = _wrapped([*_plain(prompt.role.capitalize(), fonts, bold=True)], width)
    if prompt.error:
        rows += [*_wrapped([*_plain(VIEWS[index], fonts, ink=MUTED)], width), Row()]
        return rows + _wrapped([*_plain(prompt.error, fonts, ink=BAD)], width)
    for line in _counts(preview, index):
        rows += _wrapped([*_plain(line, fonts, ink=MUTED)], width)
    rows += [Row(), *_wrapped([word for piece in prompt.pieces for word in _piece(piece, fonts)], width)]
    for picture in prompt.pictures:
        size = f"{picture.image.width}×{picture.image.height} px, resized to {picture.seen[0]}×{picture.seen[1]}"
        caption = f"{picture.number}  {ORIGINS[picture.origin]} · {size} · {picture.tokens:,} tokens"
        rows += [Row(), Row([Word(image=_scaled(picture.image, width))])]
        rows += _wrapped([*_plain(caption, fonts, ink=MUTED)], width)
    return rows


def _counts(preview: Preview, index: int) -> list[str]:
    prompt: Prompt = preview.prompts[index]
    names = (("p", "p"), ("images", "image"), ("question", "question"), ("template", "template"))
    counts = " + ".join(f"{prompt.count(kind):,} {name}" for name, kind in names)  # type: ignore[arg-type]
    lines = [f"{VIEWS[index]} · {prompt.tokens:,} of {preview.max_prompt_tokens:,} tokens", counts]
    student = preview.prompts[1]
    if index == 2 and not student.error:
        same = prompt.ids == student.ids and prompt.text == student.text
        lines.append("the same ids as the privileged student" if same else "NOT the privileged student’s prompt")
    return lines


def _piece(piece: Piece, fonts: Fonts) -> Iterator[Word]:
    paper = P if piece.in_section else ""
    ink = MUTED if piece.kind == "template" else INK
    for run in runs(piece.text):
        if piece.picture and run.text not in VISION:
            thumbnail = piece.picture.image.convert("RGB")
            thumbnail.thumbnail(THUMBNAIL)
            yield Word(image=thumbnail, paper=paper)
            yield from fonts.words(f" {piece.picture.number} ", paper=paper, bold=True)
        elif run.kind == "newline":
            yield from fonts.words("↵", ink=MUTED, paper=paper)
            yield Word(end=True)
        elif run.kind == "hidden":
            yield from fonts.words(run.text, ink=BAD, paper=paper)
        elif run.kind == "token":
            yield from fonts.words(run.text, ink=MUTED, paper=TOKEN)
        else:
            yield from fonts.words(run.text, ink=ink, paper=paper, bold=piece.kind == "question")


def _plain(text: str, fonts: Fonts, ink: str = INK, bold: bool = False) -> Iterator[Word]:
    """A text of ours or of the data set on the picture's own lines."""
    for run in runs(text):
        if run.kind == "hidden":
            yield from fonts.words(run.text, ink=BAD)
        else:
            yield from fonts.words(" " if run.kind == "newline" else run.text, ink=ink, bold=bold)


def _wrapped(words: Iterable[Word], width: float) -> list[Row]:
    """Rows no wider than `width` px, apart from a single character or image that is."""
    rows, room = [Row()], width
    queue = list(words)[::-1]
    while queue:
        word = queue.pop()
        fits = word.width if word.image else (word.font.getlength(word.text.rstrip()) if word.font else 0.0)
        if fits > room and rows[-1].words:
            rows.append(Row())
            room = width
        if fits > room and word.font and len(word.text) > 1:
            word, rest = word.split(room)
            queue.append(rest)
        rows[-1].words.append(word)
        room -= word.width
        if word.end:
            rows.append(Row())
            room = width
    return rows if rows[-1].words else rows[:-1]


def _draw(image: Image.Image, canvas: ImageDraw.ImageDraw, rows: list[Row], left: int, top: int) -> None:
    for row in rows:
        x = float(left)
        for word in _joined(row.words):
            if word.paper and word.width >= 1:
                middle, half = top + row.height / 2, (row.height if word.image else LINE) / 2
                canvas.rectangle((x, middle - half, x + word.width - 1, middle + half - 1), fill=word.paper)
            if word.image:
                image.paste(word.image, (round(x), top + (row.height - word.image.height) // 2))
            elif word.font:
                canvas.text((x, top + row.height / 2 + SIZE * 0.36), word.text, word.ink, word.font, anchor="ls")
            x += word.width
        top += row.height


def _joined(words: list[Word]) -> Iterator[Word]:
    """Words that look alike as one, so that the order within right-to-left text comes out right."""
    alike = itertools.groupby(words, key=lambda word: (word.font and word.font.path, word.ink, word.paper, word.end))
    for (path, *_), group in alike:
        same = list(group)
        if not path or same[0].image:
            yield from same
        else:
            first = same[0]
            yield Word(text="".join(w.text for w in same), font=first.font, ink=first.ink, paper=first.paper)


def _scaled(image: Image.Image, width: int) -> Image.Image:
    """As large as there is room for, small ones enlarged to ENLARGED px."""
    scale = min(width / image.width, TALLEST / image.height, max(1.0, ENLARGED / image.width))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
