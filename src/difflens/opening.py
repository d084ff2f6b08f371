"""Opening a run: device and processes, backbone, data, fingerprints, provenance, lock and resume."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator

from difflens.backbones.base import Backbone
from difflens.backbones.config import BackboneConfig
from difflens.configs.earlier import upgraded
from difflens.configs.options import Options, changeable, recorded
from difflens.errors import DiffLensError
from difflens.run.directory import RunDirectory
from difflens.run.processes import accelerator
from difflens.run.provenance import environment


class DataSet(Protocol):
    """Images to read, with a digest of their content."""

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str:
        """Hex digest that is equal for equal images and labels."""


D = TypeVar("D", bound=DataSet | None)


@dataclass
class OpenedRun(Generic[D]):
    """A command's resources before its run directory exists.

    Attributes:
        config: resolved options.
        process: device and processes.
        data: images, or None where the command reads none.
        fingerprints: digests of backbone and data, taken before anything converts or trains weights.
    """

    config: Any
    process: Accelerator
    data: D
    source: BackboneConfig | None
    loaded: Backbone | None
    fingerprints: dict[str, str]

    @property
    def backbone(self) -> Backbone:
        """The backbone, on the CPU until the command moves it."""
        assert self.loaded is not None, f"{self.config.command} reads no backbone"
        return self.loaded

    @property
    def backbone_config(self) -> BackboneConfig:
        """How the backbone is loaded again."""
        assert self.source is not None, f"{self.config.command} reads no backbone"
        return self.source

    @contextmanager
    def directory(
        self, identity: Mapping[str, Any] | None = None, growing: str | None = None
    ) -> Iterator[RunDirectory]:
        """The locked run directory, in which the command works.

        Args:
            identity: what makes the run the same run, besides recorded options and fingerprints.
            growing: an option whose list may grow in a continuation.

        Raises:
            DiffLensError: the folder holds another run or is in use, or the GPU has too little memory.
        """
        config = self.config
        record = {**recorded(config), **self.fingerprints, **(identity or {})}
        run = RunDirectory(
            config.out, config.command, record, getattr(config, "resume", None), self.process, growing,
            changeable(type(config)), upgraded,
        )  # fmt: skip
        with run.working():
            try:
                yield run
            except torch.OutOfMemoryError as error:
                raise DiffLensError(f"the GPU has too little memory: {config.memory_advice}") from error

    def provenance(self) -> dict[str, str]:
        """Rows of a report's closing table: backbone, data, and the environment."""
        rows = {}
        if self.source is not None:
            rows["Backbone"] = (
                f"{self.source.spec}, fingerprint {self.fingerprints['backbone_fingerprint'][:12]}"
            )
        if self.data is not None:
            rows["Data"] = f"{self.data.name}, fingerprint {self.fingerprints['data_fingerprint'][:12]}"
        return {**rows, **environment(self.process.device)}


def open_run(
    config: Options, data: D, *, process: Accelerator | None = None, one_process: str | None = None
) -> OpenedRun[D]:
    """Open what a command works with, in the order in which errors are cheapest to find.

    Args:
        config: resolved options. Where they name a backbone, it is loaded on the CPU.
        data: images to read; None for a command that reads none.
        process: device and processes, where another run of the same command has them already.
        one_process: for a command that runs in one process: the hint for those who start several.

    Raises:
        DiffLensError: several processes run a command of one, or the backbone cannot be loaded.
    """
    asked: Any = config
    process = process or accelerator(asked.device)
    if one_process is not None and process.num_processes > 1:
        raise DiffLensError(f"{config.command} runs in one process{one_process}")
    fingerprints = {}
    source = loaded = None
    spec = getattr(config, "backbone", None)
    if isinstance(spec, str):
        source = BackboneConfig.of(asked, spec)
        loaded = source.load()
        fingerprints["backbone_fingerprint"] = loaded.fingerprint()
    if data is not None:
        fingerprints["data_fingerprint"] = data.fingerprint()
    return OpenedRun(config, process, data, source, loaded, fingerprints)
