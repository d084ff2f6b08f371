"""`difflens generate`: images from a backbone's own weights, written to a folder."""

import json
import re
import time
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from difflens.backbones.bigan import BiGANBackbone
from difflens.configs.generate import GenerateConfig
from difflens.configs.options import given, resolve
from difflens.data.images import read_image, to_float, to_uint8
from difflens.errors import DiffLensError, counted
from difflens.generation.base import Sampler
from difflens.generation.grid import image_grid, to_picture
from difflens.generation.samplers import make_sampler
from difflens.opening import open_run, with_backbone
from difflens.processes.base import NoiseProcess
from difflens.results.generate import GenerateResult
from difflens.run.console import progress_bar
from difflens.run.directory import CONFIG, FINISHED, RunDirectory, read_record
from difflens.run.files import replace_with

GRID_IMAGES = 64
"""The largest number of images in grid.png."""

_IMAGE_NAME = re.compile(r"\d{6}\.png")


def generate(config: GenerateConfig) -> GenerateResult:
    """Generate the images that `config` describes; several processes share the batches.

    metrics.json exists if and only if all images do.

    Raises:
        DiffLensError: an option is wrong; the backbone cannot be loaded or cannot generate; the GPU has too
            little memory; the folder holds another run or more than `n` images; or writing fails.
    """
    config = with_backbone(resolve(config), None)
    opened = open_run(config, None)
    backbone, process = opened.backbone, opened.process
    compiled = process.device.type == "cuda"
    named = config.sampler
    if config.resume and named == "ddim" and isinstance(backbone, BiGANBackbone):
        named = None  # earlier versions took this word for a generator, and `compare` says it
    sampler = make_sampler(backbone, named, config.steps, config.eta, config.seed, compiled)
    if backbone.in_channels not in (1, 3):
        raise DiffLensError(
            f"{backbone.spec} has {counted(backbone.in_channels, 'channel')}: no grey or RGB images"
        )
    default_batch = max(1, min(64, 64 * 32 // backbone.image_size))
    config = replace(config, steps=sampler.steps, batch_size=config.batch_size or default_batch)
    opened.config = config
    if process.device.type == "cpu":
        backbone.require_memory(given(config.batch_size))
    backbone.convert(getattr(torch, config.decided_precision))
    with opened.directory({"sampler": sampler.name, **_scheduler(config, backbone.process)}) as run:
        return _Generation(config, sampler, run, process).run_all()


def _scheduler(config: GenerateConfig, process: NoiseProcess) -> dict[str, str]:
    """Return a digest of what a sampler reads of the backbone besides its network, for a run to record.

    The fingerprint of the backbone is that of its features, on which most of this has no effect. A run of an
    earlier version recorded no digest, and goes on without one.
    """
    kept = config.out / CONFIG
    if config.resume and kept.exists() and "scheduler_fingerprint" not in read_record(config.out):
        return {}
    fields = {name: value for name, value in process.config.items() if name != "_diffusers_version"}
    read = json.dumps([process.prediction, fields], sort_keys=True, default=str)
    return {"scheduler_fingerprint": sha256(read.encode()).hexdigest()}


class _Generation:
    """The images of one run: those that exist are kept, the missing ones are drawn and written."""

    def __init__(
        self,
        config: GenerateConfig,
        sampler: Sampler,
        run: RunDirectory,
        process: Accelerator,
    ):
        self.config, self.sampler, self.run, self.process = config, sampler, run, process
        self.folder = config.out / "images"
        assert config.batch_size is not None, "`generate` sets the default"
        self.size = config.batch_size

    def run_all(self) -> GenerateResult:
        missing = self._missing()
        self.process.wait_for_everyone()  # no process writes before all have listed the folder
        self.folder.mkdir(exist_ok=True)
        if missing and self.process.is_main_process:
            (self.config.out / FINISHED).unlink(missing_ok=True)
        began = time.monotonic()
        self._draw(missing)
        self.process.wait_for_everyone()
        rate = len(missing) / max(time.monotonic() - began, 1e-9)
        return GenerateResult.from_metrics(self._finish(), self.config.out, rate)

    def _missing(self) -> set[int]:
        """Return the numbers of the images that do not exist yet.

        Raises:
            DiffLensError: the folder holds images with higher numbers than `n` allows.
        """
        names = (path.name for path in self.folder.iterdir()) if self.folder.exists() else ()
        existing = {int(name[:6]) for name in names if _IMAGE_NAME.fullmatch(name)}
        least = max(existing, default=-1) + 1
        if least > self.config.n:
            raise DiffLensError(
                f"{self.config.out} holds images up to number {least - 1}, so -n must be at least {least}, "
                f"not {self.config.n}: a run can grow, not shrink"
            )
        return {*range(self.config.n)} - existing

    def _draw(self, missing: set[int]) -> None:
        """Draw and write this process's share of the missing images, batch by batch.

        Batch b always holds the images from b * batch_size on, also those that exist. Kernels choose their
        order of summation by the size of the batch. With other batches, the last bits of an image would
        depend on n and on the image at which a run was stopped.
        """
        size, process = self.size, self.process
        batches = sorted({number // size for number in missing})
        shares = [
            (batch, sorted(missing & {*range(batch * size, (batch + 1) * size)}))
            for batch in batches[process.process_index :: process.num_processes]
        ]
        self.run.grow()
        self.sampler.backbone.to(process.device)
        began, done = time.monotonic(), 0
        with progress_bar(process.is_main_process) as bar:
            task = bar.add_task("generating", total=sum(len(numbers) for _, numbers in shares), note="")

            def advance(images: int) -> None:
                """Count one sampling step of so many images."""
                nonlocal done
                done += images
                completed = done / self.sampler.calls
                rate = completed / max(time.monotonic() - began, 1e-9) * process.num_processes
                bar.update(task, completed=completed, note=f"{rate:.3g} images/s")

            for batch, numbers in shares:
                index = torch.arange(batch * size, (batch + 1) * size, device=process.device)
                images = self.sampler(index, partial(advance, len(numbers)))
                for number in numbers:
                    self._write(number, images[number % size])

    def _write(self, number: int, image: Tensor) -> None:
        path = self.folder / _name(number)
        try:
            replace_with(path, to_picture(to_uint8(image).cpu()).save)
        except OSError as error:
            raise DiffLensError(
                f"{path} cannot be written: {error.strerror}. "
                "The images before it are whole; --resume goes on from there"
            ) from error
        self.run.keep()

    def _finish(self) -> dict[str, Any]:
        """Write the grid and the metrics when all images exist, and return the metrics on all processes."""
        config = self.config
        if self.process.is_main_process:
            images = [read_image(self.folder / _name(k)) for k in range(min(config.n, GRID_IMAGES))]
            self.run.write_with("grid.png", image_grid(to_float(torch.stack(images))).save)
            metrics = {"images": config.n, "sampler": self.sampler.name, "steps": config.steps}
            self.run.write_json(FINISHED, metrics)
        self.process.wait_for_everyone()
        return self.run.read_json(FINISHED, dict[str, Any])


def _name(number: int) -> str:
    return f"{number:06d}.png"
