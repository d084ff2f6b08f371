"""Opening a run: device and processes, backbone, data, fingerprints, provenance, lock and resume."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from difflens.backbones.base import Backbone
from difflens.backbones.config import CONDITION_FILE, BackboneConfig
from difflens.backbones.load import BUNDLED, bundled_for
from difflens.backbones.text import save_condition
from difflens.choices import Precision
from difflens.configs.earlier import upgraded
from difflens.configs.options import Options, PrecisionOptions, changeable, changeable_values, recorded
from difflens.data.changes import channels_of, say_changes
from difflens.data.copies import say_copies
from difflens.data.dense.base import DenseData
from difflens.data.sources.arrays import ARRAYS
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError
from difflens.extractors.precision import measured_precision
from difflens.reports.html import BACKBONE_REPORT, report_of
from difflens.run.console import note
from difflens.run.directory import CONFIG, RunDirectory, read_record
from difflens.run.processes import accelerator
from difflens.run.provenance import environment


class DataSet(Protocol):
    """Images to read, with a digest of their content."""

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str:
        """Return a hex digest that is equal for equal images and labels."""

    def former_fingerprint(self) -> str:
        """Return the fingerprint of version 0.1, for its runs."""


C = TypeVar("C", bound=Options)
D = TypeVar("D", bound=DataSet | None)


@dataclass
class OpenedRun(Generic[D]):
    """A command's resources before its run directory exists.

    Attributes:
        config: resolved options.
        process: device and processes.
        data: images; None for a command that reads none.
        source: configuration of the backbone; None for a command that reads none.
        loaded: the backbone; None for a command that reads none.
        fingerprints: digests of backbone and data, computed before weights are converted or trained.
        changes: what reading does to the images, in words; empty for dense data, which `tasks.dense` opens.
        copies: how many test images are copies of training images, in words; empty if none is known.
    """

    config: Any
    process: Accelerator
    data: D
    source: BackboneConfig | None
    loaded: Backbone | None
    fingerprints: dict[str, str]
    changes: str = ""
    copies: str = ""

    @property
    def backbone(self) -> Backbone:
        """The backbone, on the CPU until the command moves it."""
        assert self.loaded is not None, f"{self.config.command} reads no backbone"
        return self.loaded

    def move_backbone(self) -> Backbone:
        """Convert the backbone to the precision of the options, and then move it to the device.

        In this order a GPU needs room for the converted weights alone.
        """
        backbone, config = self.backbone, self.config
        if isinstance(config, PrecisionOptions) and config.decided_precision != "float32":
            backbone.convert(getattr(torch, config.decided_precision))
        return backbone.to(self.process.device)

    @property
    def backbone_config(self) -> BackboneConfig:
        """The configuration that loads the backbone again."""
        assert self.source is not None, f"{self.config.command} reads no backbone"
        return self.source

    @contextmanager
    def directory(
        self, identity: Mapping[str, Any] | None = None, growing: str | None = None
    ) -> Iterator[RunDirectory]:
        """Open and lock the run directory, in which the command works.

        Args:
            identity: further values that must be equal in a continuation, besides recorded options and
                fingerprints.
            growing: an option whose list may grow in a continuation.

        Raises:
            DiffLensError: the folder holds another run or is in use, or the GPU has too little memory.
        """
        config = self.config
        record = {**recorded(config), **self.fingerprints, **(identity or {})}
        run = RunDirectory(
            config.out,
            config.command,
            {**record, **changeable_values(config)},
            getattr(config, "resume", None),
            self.process,
            growing,
            changeable(type(config)),
            upgraded,
        )
        with run.working():
            self._keep_condition(run)
            try:
                yield run
            except torch.OutOfMemoryError as error:
                raise DiffLensError(f"the GPU has too little memory: {config.memory_advice}") from error

    def _keep_condition(self, run: RunDirectory) -> None:
        """Write the embedding of the empty prompt into the run directory."""
        condition = getattr(self.loaded, "condition", None)
        if run.main_process and condition is not None and condition.computed:
            save_condition(run.path / CONDITION_FILE, condition.tensors)

    def provenance(self) -> dict[str, object]:
        """Return the rows of a report's last table: backbone, data and environment."""
        rows: dict[str, object] = {}
        if self.source is not None:
            rows["Backbone"] = (
                f"{self.source.spec}, fingerprint {self.fingerprints['backbone_fingerprint'][:12]}"
            )
            rows |= report_of(self.config.out, BACKBONE_REPORT, self.source.spec)
        if self.loaded is not None:
            rows |= self.loaded.facts()
        if self.data is not None:
            rows["Data"] = f"{self.data.name}, fingerprint {self.fingerprints['data_fingerprint'][:12]}"
        if self.changes:
            rows["Images as read"] = self.changes
        if self.copies:
            rows["Copies"] = self.copies
        return {**rows, **environment(self.process.device)}


def with_data(config: C, data: DataSet | None) -> C:
    """Return `config` with the name of data that a program gives: of arrays, or where it names none."""
    options: Any = config
    if isinstance(data, ImageData) and (data.spec == ARRAYS or options.data is None):
        return cast(C, replace(options, data=data.spec))
    return config


def bundled_backbone(channels: int) -> str:
    """Return the bundled backbone for images of 1 or 3 channels, and say which."""
    kind = "grey" if channels == 1 else "colour"
    name = bundled_for(channels)
    if name is not None:
        note(f"backbone: {name}, the bundled network for images in {kind}")
        return name
    name = BUNDLED[0]
    note(f"backbone: {name}; no network for images in {kind} is bundled, --backbone names one of your own")
    return name


def with_backbone(config: C, images: ImageSplit | None) -> C:
    """Return `config` with what it leaves open of the backbone.

    Without --backbone it is the bundled one for `images`; for no images, the one for grey images.
    `--precision auto` becomes that of the resumed run, or else what is measured.
    """
    options: Any = config
    if options.backbone is None:
        channels = channels_of(images) if images is not None and len(images) else 1
        options = replace(options, backbone=bundled_backbone(channels))
    if isinstance(options, PrecisionOptions) and options.precision == "auto":
        options = replace(options, precision=_decided_precision(options))
    return cast(C, options)


def _decided_precision(options: Any) -> Precision:
    kept = options.out / CONFIG
    if getattr(options, "resume", None) and kept.exists():
        stored = read_record(options.out).get("precision")
        if stored in get_args(Precision):
            return cast(Precision, stored)
    process = accelerator(options.device)
    backbone = BackboneConfig.of(options, options.backbone).load()
    try:
        decided: list[Precision] = [measured_precision(backbone.to(process.device))]
    except torch.OutOfMemoryError:
        note(f"precision: bfloat16, since {backbone.spec} in float32 does not fit into the GPU's memory")
        decided = ["bfloat16"]
    del backbone
    gc.collect()  # a transformer's hooks refer to it
    broadcast_object_list(decided)  # processes agree on what the first one measured
    return decided[0]


def open_run(
    config: Options,
    data: D,
    *,
    process: Accelerator | None = None,
    one_process: str | None = None,
    read: tuple[BackboneConfig, Backbone, str] | None = None,
) -> OpenedRun[D]:
    """Open a command's resources; errors that are cheap to detect come first.

    Args:
        config: resolved options. If they name a backbone, it is loaded on the CPU.
        data: images to read; None for a command that reads none.
        process: device and processes, if another run of the same command has opened them.
        read: the backbone of a trained model: how it was loaded, itself, and its fingerprint when the model
            was trained. None: the one that the options name.
        one_process: for a command that runs in one process only: the end of the error message for several.

    Raises:
        DiffLensError: several processes run a command of one process, or the backbone cannot be loaded.
    """
    options: Any = config
    process = process or accelerator(options.device)
    if one_process is not None and process.num_processes > 1:
        raise DiffLensError(f"{config.command} runs in one process{one_process}")
    fingerprints = {}
    source = loaded = None
    spec = getattr(config, "backbone", None)
    if read is not None:
        source, loaded, fingerprints["backbone_fingerprint"] = read
    elif isinstance(spec, str):
        source = BackboneConfig.of(options, spec)
        kept = Path(getattr(config, "out", "")) / CONDITION_FILE
        if getattr(config, "resume", None) and kept.is_file():
            source = replace(source, condition_file=str(kept))
        loaded = source.load()
        fingerprints["backbone_fingerprint"] = loaded.fingerprint()
    copies = ""
    if data is not None:
        # the other processes of a machine find the checksums that its first one keeps
        with process.local_main_process_first():
            fingerprints["data_fingerprint"] = _data_fingerprint(options, data)
            copies = _copies(data)
    images = data.train if isinstance(data, ImageData) else data
    found = ""
    if loaded is not None and isinstance(images, ImageSplit) and len(images):
        found = say_changes(images, loaded.spec, loaded.in_channels, loaded.image_size)
    return OpenedRun(config, process, data, source, loaded, fingerprints, found, copies)


def _copies(data: DataSet) -> str:
    """Return how many images to test on are copies of training images, in words, and say it."""
    if isinstance(data, ImageData):
        return say_copies(data.train, data.test)
    return say_copies(data.train, data.val) if isinstance(data, DenseData) else ""


def _data_fingerprint(options: Any, data: DataSet) -> str:
    """Return the fingerprint of the data; that of version 0.1, if the continued run has it and it matches."""
    folder = Path(getattr(options, "out", ""))
    if getattr(options, "resume", None) and (folder / CONFIG).exists():
        former = data.former_fingerprint()
        if read_record(folder).get("data_fingerprint") == former:
            return former
    return data.fingerprint()
