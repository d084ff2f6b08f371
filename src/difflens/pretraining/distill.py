"""`difflens distill`: a backbone that reads clean images, from one that reads noised ones."""

from pathlib import Path
from typing import cast

import torch

from difflens.backbones.unet import UNetBackbone
from difflens.configs.command_line import shown_command
from difflens.configs.distill import DistillConfig
from difflens.configs.options import resolve
from difflens.data.labels import limited
from difflens.data.load import load_unlabelled
from difflens.opening import open_run, with_backbone
from difflens.pretraining.methods.distillation import Distillation, check_teacher
from difflens.pretraining.pretrain import train_method
from difflens.results.distill import DistillResult


def distill(config: DistillConfig) -> DistillResult:
    """Run `config` and write the student, a backbone that every command reads.

    Raises:
        DiffLensError: images are missing, the backbone has no noise or is not one that can be distilled, the
            folder holds something else, the GPU has too little memory, or the loss is no longer finite.
    """
    command, config = shown_command(config), resolve(config)
    images = limited(load_unlabelled(config.data), config.limit, config.seed)
    config = with_backbone(config, images)
    opened = open_run(config, images)
    check_teacher(opened.backbone)
    teacher = cast(UNetBackbone, opened.backbone)
    with opened.directory() as run:
        run.track(config.log)
        torch.manual_seed(config.seed)
        method = Distillation(config, images, opened.process, teacher)
        if opened.process.device.type == "cpu":
            teacher.require_memory(method.batch_size // opened.process.num_processes)
        path, skipped = train_method(method, run, opened.process, command, "distillation")
        log = run.read_log()
    return DistillResult(
        path=Path(path),
        first_loss=log[0]["loss"] if log else None,
        last_loss=log[-1]["loss"] if log else None,
        skipped_images=skipped,
    )
