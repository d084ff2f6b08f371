"""A saved model as a folder that another machine can load."""

import json
import shutil
from pathlib import Path
from typing import Any

from difflens.backbones.checkpoint import FLAGS
from difflens.backbones.config import CONDITION_FILE
from difflens.backbones.folder import pipeline_of
from difflens.backbones.runs import backbone_beneath, network_folder
from difflens.errors import DiffLensError
from difflens.models.saved import model_folder
from difflens.run.files import write_text
from difflens.run.reading import read_json

_FILES = ("model.safetensors", CONDITION_FILE)


def pack(model: Path, target: Path, with_backbone: bool) -> None:
    """Copy a saved model into an existing, empty folder, with paths that are relative to it.

    Args:
        model: a run's `model/`, or the run directory.
        with_backbone: also copy the files of the backbone, and of its autoencoder.

    Raises:
        DiffLensError: the folder holds no model, or its backbone is a file of this machine and is not copied.
    """
    folder = model_folder(model)
    config: dict[str, Any] = read_json(folder / "config.json", lambda stored: stored)
    card = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else ""
    backbone = config["backbone"]
    for key, name in (("spec", "backbone"), ("autoencoder", "autoencoder")):
        spec = backbone.get(key)
        place = (spec or "").removeprefix("random:")
        path = folder / place if place.startswith("./") else Path(place)
        if place.startswith("timm:") and "@" in place:
            raise DiffLensError(f"the {name} of {model} is {place}: weights of timm in a file are not packed")
        if not spec or not (path.is_absolute() or place.startswith("./") or key == "autoencoder"):
            continue  # a name, which every machine knows; an autoencoder is always a folder
        if not with_backbone:
            raise DiffLensError(
                f"the {name} of {model} lies on this machine, at {path}: add --with-backbone to copy it"
            )
        if not path.exists():
            raise DiffLensError(f"the {name} of {model} is missing: there is no {path}")
        inside = _copied(path, target, name, model)
        backbone[key] = f"{spec[: len(spec) - len(place)]}./{inside}"
        card = card.replace(place, f"./{inside}")
    for name in _FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    write_text(target / "config.json", json.dumps(config, indent=2) + "\n")
    write_text(target / "README.md", card)


def _copied(path: Path, target: Path, name: str, model: Path) -> str:
    """Copy a network's files into the folder `name` of `target`; return their place, relative to `target`.

    Raises:
        DiffLensError: the network is that of a run which reads another one.
    """
    if path.is_dir():
        path = network_folder(path)
        if backbone_beneath(path) is not None:
            raise DiffLensError(
                f"the backbone of {model} is {path}, which reads another backbone: train on that one to "
                "pack it"
            )
        whole = pipeline_of(path)  # a part needs the others
        shutil.copytree(whole, target / name)
        return name if whole == path else f"{name}/{path.name}"
    (target / name).mkdir()
    beside = [path.with_suffix(ending) for ending in FLAGS]  # of guided-diffusion
    for file in (path, *filter(Path.is_file, beside)):
        shutil.copyfile(file, target / name / file.name)
    return f"{name}/{path.name}"
