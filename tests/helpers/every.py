"""Every family of networks that difflens reads, as one small example with random weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from difflens.backbones.config import BackboneConfig
from tests.helpers import families, pipelines
from tests.helpers.adm import Adm
from tests.helpers.dit import Dit

_FOLDERS: dict[str, Callable[[Path], Path]] = {
    "DDPM": families.write_unet,
    "NCSN++": families.write_ncsnpp,
    "EDM": families.write_edm,
    "consistency model": families.write_consistency_model,
    "flow": families.write_flow,
    "classes": partial(families.write_unet, num_class_embeds=5),
    "LDM": families.write_ldm,
    "SD": pipelines.write_stable_diffusion,
    "SDXL": pipelines.write_stable_diffusion_xl,
    "DiT": families.write_dit,
    "PixArt": pipelines.write_pixart_alpha,
    "SD3": pipelines.write_stable_diffusion_3,
    "Flux": pipelines.write_flux,
}
_DIT, _ADM = Dit(), Adm(classes=5)
_FILES = {
    "DiT.pt": _DIT.random_state,
    "SiT.pt": _DIT.random_state,
    "REPA.pt": lambda: _DIT.random_state() | {"projectors.0.0.weight": torch.zeros(3, 3)},
    "ADM.pt": _ADM.random_state,
}
_IN_DIT_LAYOUT = BackboneConfig("", num_head_channels=_DIT.width // _DIT.heads, autoencoder="vae")
_OPTIONS = {
    "classes": BackboneConfig("", condition="3"),
    "Flux": BackboneConfig("", image_size=32),
    "DiT.pt": replace(_IN_DIT_LAYOUT, family="dit"),
    "SiT.pt": replace(_IN_DIT_LAYOUT, family="sit"),
    "REPA.pt": _IN_DIT_LAYOUT,
    "ADM.pt": BackboneConfig("", num_head_channels=_ADM.head_channels, image_size=32),
}

FAMILIES = (*_FOLDERS, *_FILES)
"""Names of all families: folders in diffusers format, and files of the authors (.pt)."""

TRANSFORMERS = ("DiT", "PixArt", "SD3", "Flux", "DiT.pt", "SiT.pt", "REPA.pt")
"""Families without a decoder."""

TEXT = ("SD", "SDXL", "PixArt", "SD3", "Flux")
"""Families that take the empty prompt."""


def write(name: str, root: Path) -> BackboneConfig:
    """Write the example of a family into the folder `root`, unless it is there, and return how it is read."""
    path = root / name
    if not path.exists():
        if name in _FOLDERS:
            _FOLDERS[name](path)
        else:
            torch.save(_FILES[name](), path)
    config = replace(_OPTIONS.get(name, BackboneConfig("")), spec=str(path))
    if config.autoencoder is None:
        return config
    autoencoder = root / config.autoencoder
    if not autoencoder.exists():
        families.write_autoencoder(autoencoder)
    return replace(config, autoencoder=str(autoencoder))
