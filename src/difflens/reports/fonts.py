"""Letters that matplotlib's own font lacks, as in Chinese class names: they come from other installed
fonts."""

from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text

from difflens.errors import listing
from difflens.run.console import note


def usual_font() -> str:
    """Return the file of the font that comes with matplotlib."""
    return str(findfont("DejaVu Sans"))


def with_letters(figure: Figure) -> None:
    """Let the text of a figure take letters from all fonts that are needed for them.

    Letters that no installed font has are drawn as boxes; a note names them, once.
    """
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    missing = frozenset(letter for text in texts for letter in text.get_text() if letter.isprintable())
    missing -= _letters(usual_font())
    if not missing:
        return
    families, missing = _fallbacks(missing)
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    if missing:
        _say(missing)


@cache
def _fallbacks(missing: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Return the installed fonts that have some of the letters, and the letters that none has."""
    families = []
    for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.style, entry.name)):
        found = missing & _letters(entry.fname)
        if found and not entry.name.startswith("Last Resort"):  # its letters are boxes
            families.append(entry.name)
            missing -= found
    return families, missing


@cache
def _letters(file: str) -> frozenset[str]:
    """Return the letters of a font; none if matplotlib cannot draw it: fonts of pixels, as for emojis."""
    try:
        font = get_font(file)
    except RuntimeError:
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()


@cache
def _say(missing: frozenset[str]) -> None:
    note(
        f"figures show boxes, as no installed font has {listing(sorted(missing))}: install one that has "
        "them, such as Noto Sans CJK"
    )
