"""`difflens info`: what a backbone is."""

from collections.abc import Callable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.backbones.config import BackboneConfig
from difflens.backbones.load import BUNDLED
from difflens.configs.info import InfoConfig
from difflens.configs.options import resolve
from difflens.errors import expanded
from difflens.results.info import BlockInfo, InfoResult, NoiseInfo


def info(config: InfoConfig) -> InfoResult:
    """Describe the backbone that `config` names. No image is read.

    Raises:
        DiffLensError: there is no such backbone, or it cannot be read.
    """
    config = resolve(config)
    backbone = BackboneConfig.of(config, config.backbone).load()
    costs = block_costs(backbone)
    licence, card = _card(config.backbone)
    network: Any = getattr(backbone, "unet", getattr(backbone, "network", backbone))
    return InfoResult(
        backbone=backbone.spec,
        network=type(network).__name__,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        channels=backbone.in_channels,
        image_size=backbone.image_size,
        noise=_noise(backbone) if isinstance(backbone, DiffusionBackbone) else None,
        generates=backbone.generates,
        blocks=tuple(BlockInfo(**asdict(block), cost=costs.get(block.index)) for block in backbone.blocks),
        defaults=asdict(backbone.defaults),
        licence=licence,
        card=card,
        json=config.json,
    )


def block_costs(backbone: Backbone) -> dict[int, float]:
    """Return each block's share, in [0, 1], of the multiplications of all blocks.

    The network runs on shapes alone, without computing. Where its blocks are no modules of their own, as in
    timm models, there is nothing to count, and the result is empty.
    """
    counted = dict.fromkeys((block.index for block in backbone.blocks), 0)
    handles = []
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:

        def watch(module: nn.Module, index: int) -> None:
            starts: list[int] = []
            before: Callable[..., None] = lambda *_: starts.append(counter.get_total_flops())  # noqa: E731

            def after(*_: Any) -> None:
                counted[index] += counter.get_total_flops() - starts.pop()

            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))

        for index in counted:
            for module in backbone.modules_of(index):
                watch(module, index)
        side = backbone.image_size
        images: Tensor = torch.zeros(1, backbone.in_channels, side, side)
        try:
            backbone.features(images, 0, [len(backbone.blocks)])
        finally:
            for handle in handles:
                handle.remove()
    total = sum(counted.values())
    return {index: count / total for index, count in counted.items()} if total else {}


def _noise(backbone: DiffusionBackbone) -> NoiseInfo:
    schedule = backbone.process
    log_snr = (schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)).log()
    last = float(log_snr[-1])
    scheduler = schedule.config.get("_class_name")
    return NoiseInfo(
        process="variance preserving",
        steps=schedule.num_steps,
        log_snr=(float(log_snr[0]), last if last > -torch.inf else None),
        schedule=str(schedule.config["beta_schedule"]),
        prediction=backbone.prediction_type,
        scheduler=None if scheduler is None else str(scheduler),
    )


def _card(spec: str) -> tuple[str | None, str | None]:
    """Return the licence that the model card's header states, and the card's path."""
    name = spec.removeprefix("random:")
    folder = Path(str(files("difflens") / "assets" / name)) if name in BUNDLED else expanded(name)
    card = folder / "README.md"
    if not card.is_file():
        return None, None
    _, marker, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        header = yaml.safe_load(rest.partition("\n---")[0]) if marker else None
    except yaml.YAMLError:
        header = None
    licence = header.get("license") if isinstance(header, dict) else None
    return None if licence is None else str(licence), str(card)
