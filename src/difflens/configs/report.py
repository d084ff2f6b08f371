"""Options of `difflens report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from difflens.choices import OnBadImage


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """One HTML report of one backbone: top-1 by head, Fréchet distance, samples, their nearest training images.

    Name what there is of it, in any order; what is not given is left out, but samples are drawn.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories of pretrain, probe, demo, generate and fidelity, or a backbone; all of the same backbone."""
    out: Path | None = None
    """The HTML file. None: backbone.html in the first run directory."""
    data: str | None = None
    """Whose training images the samples are compared with. None: those of the pretrain, probe or demo run."""
    features: str | None = None
    """Measure the images of the generate run against the test images of `data` in this space, as `fidelity` does."""
    samples: int = 36
    """Images to show: the generate run's first, else drawn, of diffusion with 50 steps of DDIM."""
    seed: int = 0
    """Of samples that are drawn, and of the noise at which features are read."""
    on_bad_image: OnBadImage = "error"
    """skip leaves training images out that cannot be read."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
