"""Reads commands and run directories of earlier versions under the names of this version."""

from collections.abc import Mapping
from typing import Any

FORMER_COMMANDS = {"rivals": "compare"}
"""Command words of earlier versions, and the words of this version."""

_OPTIONS = {"warmup_iterations": "warmup_steps", "ruler": "reference_distances"}
# heads that read --normalise, which had a default for all heads
_NORMALISING = ("linear", "knn", "mix")
# commands whose limits kept the first images, and these options
_LIMITED = ("probe", "extract", "pretrain", "compare", "demo")
_LIMITS = ("limit", "train_images", "test_images")


def upgraded(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration of any version in the form in which this version writes it.

    Version 0.1 stored `--flip`, `--warmup-epochs`, the head diffeed, and defaults of options without effect.
    """
    record = {_OPTIONS.get(key, key): value for key, value in stored.items()}
    record["command"] = command = FORMER_COMMANDS.get(record.get("command", ""), record.get("command"))
    if command == "pretrain":
        record["precision"] = record.get("precision") or "auto"
        if record.get("self_condition") is False:  # an option that was tried and removed
            del record["self_condition"]
    if "flip" in record:
        record["augment"] = "flip" if record.pop("flip") else "none"
    if command in ("segment", "detect") and "label_fraction" in record:
        record["image_fraction"] = record.pop("label_fraction")
    if command in ("segment", "detect"):
        record.setdefault("exif", "apply")
        record.setdefault("mix", False)
        record.setdefault("accumulate", 1)
    if command == "compare":  # the protocol attention does not read it
        record.setdefault("normalise", "standard" if record.get("protocols") == ["attention"] else "none")
    if command == "sweep":
        record.setdefault("normalise", "none")
        record.setdefault("halve", False)
    if record.get("warmup_epochs") in (0.0, 0.5):
        record["warmup_steps"] = None if record.pop("warmup_epochs") else 0  # None means half an epoch
    if record.get("head") == "diffeed":
        record |= {"head": "attention", "extractor": "feedback"}
    elif command == "probe" and record.get("extractor") is None:
        record["extractor"] = "frozen"
    if command == "probe":
        reads = record.get("head") in _NORMALISING
        record["normalise"] = record.get("normalise", "none") if reads else None
    if record.get("extractor") != "finetuned":
        record.pop("layer_decay", None)
    if record.get("lr_schedule") != "step":
        record.pop("step_epochs", None)
    if command in _LIMITED and any(record.get(name) is not None for name in _LIMITS):
        record.setdefault("limit_keeps", "the first images")
    return record
