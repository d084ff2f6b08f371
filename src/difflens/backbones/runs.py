"""Run directories as backbones: the network that a run has trained, or the frozen one that its head reads."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from difflens.backbones.config import CONDITION_FILE, BackboneConfig
from difflens.errors import DiffLensError
from difflens.run.directory import CONFIG, read_record
from difflens.run.reading import checked, field_in, read_json

_DESCRIBED = ("model_index.json", "config.json")
_TRAIN = ("pretrain", "probe", "segment", "detect")


@dataclass(frozen=True)
class ReadBackbone:
    """The backbone that a saved model reads.

    Attributes:
        config: how it is loaded.
        fingerprint: its fingerprint when the model was trained.
    """

    config: BackboneConfig
    fingerprint: str


def read_backbone(description: dict[str, Any], folder: Path) -> ReadBackbone:
    """Return the backbone in a saved model's config.json; raise FieldError if a field is wrong.

    Paths that begin with ./, as a packed model has them, are taken from `folder`, which is the model's.
    """

    def anchored(spec: str) -> str:
        fresh = "random:" * spec.startswith("random:")
        place = spec.removeprefix(fresh)
        return f"{fresh}{folder / place}" if place.startswith("./") else spec

    fields = dict(field_in(description, "backbone", dict[str, Any]))
    fingerprint = checked(str, fields.pop("fingerprint", None), "backbone.fingerprint")
    stored = checked(BackboneConfig, fields, "backbone")
    autoencoder = None if stored.autoencoder is None else anchored(stored.autoencoder)
    return ReadBackbone(replace(stored, spec=anchored(stored.spec), autoencoder=autoencoder), fingerprint)


def network_folder(folder: Path) -> Path:
    """Return the folder of the network in `folder`: model/ of a run directory, else `folder` itself.

    Raises:
        DiffLensError: it is a run directory without a model.
    """
    if not (folder / CONFIG).is_file() or any((folder / name).is_file() for name in _DESCRIBED):
        return folder
    if (folder / "model").is_dir():
        return folder / "model"
    record = read_record(folder)
    command, read = str(record["command"]), record.get("backbone")
    if command in _TRAIN:
        raise DiffLensError(f"{folder} is a run of {command} without a model: --resume finishes it")
    remedy = f"name its backbone, {read}" if isinstance(read, str) else "name a backbone"
    raise DiffLensError(f"{folder} is a run of {command}, which trains no network: {remedy}")


def backbone_beneath(folder: Path) -> ReadBackbone | None:
    """Return the frozen backbone that the model in `folder` reads; None if the folder holds no such model.

    Raises:
        DiffLensError: the model changes what its backbone computes, or config.json is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None

    def parse(description: dict[str, Any]) -> tuple[ReadBackbone, str] | None:
        if "difflens" not in description or "backbone" not in description:
            return None
        extractor = field_in(description, "extractor", dict[str, Any])
        return read_backbone(description, folder), checked(str, extractor.get("name"), "extractor.name")

    found = read_json(path, parse)
    if found is None:
        return None
    read, extractor = found
    if extractor != "frozen":
        how = "fine-tuned it" if extractor == "finetuned" else "added feedback layers to it"
        raise DiffLensError(
            f"{folder} holds no frozen backbone: training {how}. Name the backbone that it began with, "
            f"{read.config.spec}"
        )
    kept = folder / CONDITION_FILE
    condition = str(kept) if kept.is_file() else None
    return ReadBackbone(replace(read.config, condition_file=condition), read.fingerprint)
