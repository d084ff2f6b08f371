"""`difflens distill`: a backbone that reads clean images, from one that reads noised ones."""

from typing import cast

import torch

from difflens.backbones.unet import UNetBackbone
from difflens.configs.command_line import shown_command
from difflens.configs.distill import DistillConfig
from difflens.configs.options import given, resolve
from difflens.data.labels import limited
from difflens.data.load import load_unlabelled
from difflens.opening import open_run, with_backbone
from difflens.pretraining.methods.distillation import Distillation, check_teacher
from difflens.pretraining.pretrain import train_method
from difflens.results.distill import DistillResult
from difflens.training.objectives import micro_batch


def distill(config: DistillConfig) -> DistillResult:
    """Run `config` and write the student, a backbone that every command reads.

    Raises:
        DiffLensError: images are missing, the backbone has no noise or is not one that can be distilled,
            processes do not divide the batch, the folder holds something else, the GPU has too little memory,
            or the loss is no longer finite.
    """
    command, config = shown_command(config), resolve(config)
    images = limited(load_unlabelled(config.data, config.val_fraction), config.limit, config.seed)
    config = with_backbone(config, images)
    opened = open_run(config, images)
    check_teacher(opened.backbone)
    teacher = cast(UNetBackbone, opened.backbone)
    size = micro_batch(given(config.batch_size), opened.process.num_processes, accumulate=1)
    with opened.directory() as run:
        run.track(config.log)
        torch.manual_seed(config.seed)
        method = Distillation(config, images, opened.process, teacher)
        if opened.process.device.type == "cpu":
            teacher.require_memory(size)
        trained = train_method(method, run, opened.process, command, "distillation")
        log = run.read_log()
    return DistillResult(
        path=trained.path,
        first_loss=log[0]["loss"] if log else None,
        last_loss=log[-1]["loss"] if log else None,
        skipped_images=trained.skipped,
        epochs_done=trained.epochs_done,
        epochs=given(config.epochs),
    )
