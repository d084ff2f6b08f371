"""`difflens pretrain`: trains a backbone by diffusion, or by a method to compare it with.

All that is random is a function of (seed, epoch, image), and the images of a step do not depend on the number
of processes. A run that is stopped and resumed reads exactly the same batches as an uninterrupted one.
"""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from difflens.configs.command_line import beside, shown_command
from difflens.configs.generate import GenerateConfig
from difflens.configs.options import given, resolve
from difflens.configs.pretrain import PretrainConfig
from difflens.configs.probe import ProbeConfig
from difflens.data.changes import say_changes
from difflens.data.labels import limited, one_label
from difflens.data.load import load_data, load_unlabelled
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.generation.grid import image_grid
from difflens.generation.samplers import sample
from difflens.opening import open_run
from difflens.pretraining.export import Record, write_card, write_record
from difflens.pretraining.methods.base import PretrainingMethod
from difflens.pretraining.methods.make import make_method
from difflens.pretraining.online_probe import OnlineProbe
from difflens.pretraining.precision import choose_precision
from difflens.results.pretrain import PretrainResult
from difflens.run.directory import CONFIG, RunDirectory, read_record
from difflens.run.text import markdown_code
from difflens.training.loop import TrainingLoop
from difflens.training.objectives import Look, micro_batch

LOOK_EVERY = 50
"""Steps between looks at the loss. A look waits for the device; checkpoints and stops happen only there."""


def pretrain(config: PretrainConfig) -> PretrainResult:
    """Run `config` and write a backbone, for diffusion in diffusers format.

    Raises:
        DiffLensError: images, labels or a package are missing, the image size does not suit the network,
            processes and micro-batches do not divide the batch, the folder holds something else, the GPU has
            too little memory, or the loss is no longer finite.
    """
    command, config = shown_command(config), resolve(config)
    images = limited(_images(config), config.limit, config.seed)
    # earlier versions recorded no fingerprint of the images
    kept = config.out / CONFIG
    unknown = config.resume and kept.exists() and "data_fingerprint" not in read_record(config.out)
    opened = open_run(config, None if unknown else images)
    process = opened.process
    size = micro_batch(given(config.batch_size), process.num_processes, config.accumulate)
    opened.config = config = replace(config, precision=choose_precision(config, process))
    with opened.directory() as run:
        run.track(config.log)
        torch.manual_seed(config.seed)
        method = make_method(config, images, process)
        if process.device.type == "cpu":
            method.backbone().require_memory(size)
        say_changes(images, f"the preset {config.preset}", method.channels, method.side)
        if config.probe_data is not None:
            method.probe = OnlineProbe(config, method.channels, method.side, process)
        title = f"pre-training {config.preset}, seed {config.seed}"
        trained = train_method(method, run, process, command, title, config.snapshot_epochs)
        return PretrainResult(
            path=trained.path,
            skipped_images=trained.skipped,
            epochs_done=trained.epochs_done,
            epochs=given(config.epochs),
            commands=_commands(config, trained.path),
        )


def _commands(config: PretrainConfig, model: Path) -> tuple[str, ...]:
    """Return command lines that read the model, and draw from it."""
    spec, out = str(model), config.out
    commands = []
    # the images have no labels, or no split: then all of them were trained on, and none is left to test on
    with suppress(DiffLensError):
        load_data(config.data, val_fraction=config.val_fraction)
        probe = ProbeConfig(out=out, backbone=spec, data=config.data, val_fraction=config.val_fraction)
        commands.append(shown_command(probe, beside(out, "probe")))
    if config.method in ("diffusion", "bigan"):
        commands.append(shown_command(GenerateConfig(out=out, backbone=spec, n=36), beside(out, "samples")))
    return tuple(commands)


def _images(config: PretrainConfig) -> ImageSplit:
    """Return the images to train on, without the test split; only supervised training gets labels."""
    if config.method != "supervised":
        return load_unlabelled(config.data, val_fraction=config.val_fraction)
    data = load_data(config.data, val_fraction=config.val_fraction)
    return one_label(data, "--method supervised").train


class Trained(NamedTuple):
    """What a training wrote.

    Attributes:
        path: the folder of the model.
        skipped: a line for each image that could not be read.
        epochs_done: whole epochs; fewer than planned if the time was up.
    """

    path: Path
    skipped: tuple[str, ...]
    epochs_done: int


def train_method(
    method: PretrainingMethod,
    run: RunDirectory,
    process: Accelerator,
    command: str,
    title: str,
    snapshot_epochs: int | None = None,
) -> Trained:
    """Train from the start or the last checkpoint, and write the model.

    Args:
        command: the command line, for the model card.
        title: of the progress bar.
        snapshot_epochs: epochs between two snapshots; None: no snapshots.
    """
    config = method.config
    loop = TrainingLoop(
        method,
        process,
        run,
        title,
        LOOK_EVERY,
        checkpoint_seconds=60 * given(config.checkpoint_minutes),
        max_seconds=math.inf if config.max_minutes is None else 60 * config.max_minutes,
    )

    def export(name: str) -> Path:
        return run.write_folder(name, lambda folder: _export(folder, method, loop, run, command))

    def on_look(look: Look) -> None:
        # snapshots, at ends of epochs
        if snapshot_epochs and look.iteration % (snapshot_epochs * method.epoch_iterations) == 0:
            export(f"snapshots/epoch-{look.iteration // method.epoch_iterations:04d}")

    loop.train(on_look)
    skipped = {*gather_object(method.skipped)} if process.num_processes > 1 else {*method.skipped}
    return Trained(export("model"), tuple(sorted(skipped)), loop.iteration // method.epoch_iterations)


def _export(
    folder: Path, method: PretrainingMethod, loop: TrainingLoop, run: RunDirectory, command: str
) -> None:
    """Write the trained network into a folder that `load_backbone` reads."""
    backbone = method.backbone()
    if backbone.generates:
        # few large images at a time, as the training still takes memory
        together = math.ceil(64 * (32 / backbone.image_size) ** 2)
        samples = image_grid(sample(backbone, 36, seed=method.config.seed, batch_size=together))
        run.trackers.picture(loop.iteration, "samples", samples)
        samples.save(folder / "samples.png")
    method.write(folder, backbone)
    shape = method.channels, method.side
    log = run.read_log()
    write_card(folder, method.card(), shape, log, _facts(method, loop, log, command))
    before = method.images_before
    write_record(folder, Record(None if before is None else before + loop.iteration * method.batch_size))


def _facts(
    method: PretrainingMethod, loop: TrainingLoop, log: list[dict[str, Any]], command: str
) -> dict[str, str]:
    """Return the rows of the model card's table."""
    hardware = torch.cuda.get_device_name() if method.device.type == "cuda" else "CPU"
    return {
        "command": markdown_code(command),
        "images": f"{len(method.images):,}",
        "epochs": f"{loop.iteration // method.epoch_iterations} of {method.config.epochs}",
        "steps": f"{loop.iteration:,}, batch {method.batch_size}",
        "images seen": f"{loop.iteration * method.batch_size:,}",
        "minutes of training": f"{loop.seconds / 60:.1f}",
        **({} if method.probe is None else {"probe": method.probe.fact(log, loop.seconds)}),
        **method.facts(),
        "hardware": f"{hardware} x {method.process.num_processes}, {method.precision}",
        "loss": method.description,
    }
