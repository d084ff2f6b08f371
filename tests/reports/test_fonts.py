"""Letters that matplotlib's own font lacks."""

import warnings
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from difflens.reports import fonts
from difflens.reports.png import write_png

FROM_ANOTHER_FONT = "\U0001d4d0"  # a script capital A, which is in STIX, and STIX comes with matplotlib
IN_NO_FONT = "\U00011d60"  # a letter of Gunjala Gondi


@pytest.fixture(autouse=True)
def forget() -> None:
    fonts._say.cache_clear()


def drawn(name: str) -> np.ndarray:
    figure = Figure(figsize=(2, 1))
    figure.text(0.5, 0.5, name)
    target = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_png(figure, target)
    return np.asarray(Image.open(target))


def test_a_letter_comes_from_another_font(capsys: pytest.CaptureFixture[str]) -> None:
    assert FROM_ANOTHER_FONT not in fonts._letters(fonts.usual_font())
    assert drawn(FROM_ANOTHER_FONT).shape != drawn(IN_NO_FONT).shape
    drawn(FROM_ANOTHER_FONT)
    assert capsys.readouterr().err.count("figures show boxes") == 1


def test_a_letter_that_no_font_has_is_named_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "_letters", lambda file: frozenset("ab"))
    fonts._fallbacks.cache_clear()
    drawn("abc")
    drawn("abc")
    assert capsys.readouterr().err == (
        "figures show boxes, as no installed font has c: install one that has them, such as Noto Sans CJK\n"
    )
    fonts._fallbacks.cache_clear()
