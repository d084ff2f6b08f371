"""The page of `difflens explore`: similarity between positions of pictures, computed in the browser."""

import json
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor

from difflens.metrics.projection import Projected
from difflens.processes.base import Level, log_snr_text
from difflens.reports.html import templates
from difflens.results.sweep import SweepResult
from difflens.run.text import one_line

_SIDE = 256  # the most pixels along a side of a picture


@dataclass(frozen=True)
class MapOfPlace:
    """The feature vectors of all pictures at one place.

    Attributes:
        side: positions along a side of each picture.
        vectors: N x side x side vectors, by picture, row and column.
    """

    side: int
    vectors: Projected


def explore_page(
    *,
    title: str,
    lead: str,
    pictures: Sequence[tuple[str, Tensor]],
    blocks: Mapping[int, str],
    log_snr: Mapping[Level, float],
    places: Mapping[tuple[int, Level], MapOfPlace],
    start: tuple[int, Level],
    sweep: SweepResult | None,
    provenance: Mapping[str, object],
) -> str:
    """Return the page as one self-contained HTML document with one script, which the page's policy names by
    its digest.

    Args:
        title, lead: title, and the subject of the page in a sentence.
        pictures: name and square image, uint8 (C, S, S), of each.
        blocks: part of the network by block.
        log_snr: by noise step, from the least to the most noise.
        places: by (block, noise step), every block at every noise step.
        start: the place that is shown first.
        sweep: whose heat map is shown; None: none.
        provenance: rows of the closing table.
    """
    steps = list(log_snr)
    content = {
        "pictures": [{"name": one_line(name), "src": _jpeg(image)} for name, image in pictures],
        "blocks": [{"index": block, "part": part} for block, part in blocks.items()],
        "levels": [{"t": str(t), "logSnr": log_snr_text(value)} for t, value in log_snr.items()],
        "places": [[_encoded(places[block, t]) for t in steps] for block in blocks],
        "start": [list(blocks).index(start[0]), steps.index(start[1])],
        "sweep": None if sweep is None else _heat_map(sweep, list(blocks), steps),
    }
    script = files("difflens.reports").joinpath("explore.js").read_text(encoding="utf-8")
    return (
        templates()
        .get_template("explore.html.j2")
        .render(
            title=title,
            lead=lead,
            provenance=provenance,
            script=script,
            digest=b64encode(sha256(script.encode()).digest()).decode(),
            # no name can end the element that holds it
            data=json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"),
        )
    )


def _encoded(place: MapOfPlace) -> dict[str, object]:
    vectors = place.vectors
    offsets = vectors.offsets.numpy()
    step = max(float(np.abs(offsets).max()) / 32767, 1e-12)
    return {
        "side": place.side,
        "dims": vectors.codes.shape[1],
        "scale": vectors.scale,
        "square": vectors.square,
        "codes": _packed(vectors.codes.T.contiguous().numpy()),
        "step": step,
        "offsets": _packed(np.round(offsets / step).astype("<i2")),
        "agreement": round(vectors.agreement, 4),
    }


def _packed(values: np.ndarray) -> str:
    """Return the bytes of an array, deflated without a header, in base64."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b64encode(deflate.compress(values.tobytes()) + deflate.flush()).decode()


def _jpeg(image: Tensor) -> str:
    picture = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"


def _heat_map(sweep: SweepResult, blocks: Sequence[int], steps: Sequence[Level]) -> dict[str, object]:
    """Return the accuracies of a sweep, and which cells are places of the page."""
    accuracy = next(iter(sweep.accuracy.values()))
    return {
        "blocks": list(sweep.blocks),
        "levels": [str(t) for t in sweep.noise_steps],
        "values": [[None if v != v else round(100 * v, 1) for v in row] for row in accuracy.tolist()],
        "columns": [blocks.index(b) if b in blocks else None for b in sweep.blocks],
        "rows": [steps.index(t) if t in steps else None for t in sweep.noise_steps],
    }
