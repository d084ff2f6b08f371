"""`difflens info`: what a backbone is."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.backbones.bigan import BiGANBackbone
from difflens.backbones.conditions import condition_choices
from difflens.backbones.config import BackboneConfig
from difflens.backbones.load import BUNDLED, bundled_folder
from difflens.backbones.runs import backbone_beneath, network_folder
from difflens.backbones.transformer import TransformerBackbone
from difflens.choices import SamplerName
from difflens.configs.info import InfoConfig
from difflens.configs.options import resolve
from difflens.errors import DiffLensError, expanded
from difflens.generation.one_pass import OnePassSampler
from difflens.generation.samplers import make_sampler
from difflens.processes.base import Level, NoiseProcess
from difflens.processes.clean import Clean
from difflens.results.info import BlockInfo, ConditionInfo, DefaultsInfo, InfoResult, LatentsInfo, NoiseInfo
from difflens.run.console import warn
from difflens.run.reading import read_text, yaml_of


def info(config: InfoConfig) -> InfoResult:
    """Describe the backbone that `config` names. No image is read.

    A backbone with the prefix "random:" is made on the meta device: it takes no memory and needs no weights.

    Raises:
        DiffLensError: there is no such backbone, or it cannot be read.
    """
    config = resolve(config)
    device = "meta" if config.backbone.startswith("random:") else "cpu"
    backbone = BackboneConfig.of(config, config.backbone).load(device)
    costs = block_costs(backbone)
    licence, card = _card(config.backbone)
    network: Any = getattr(backbone, "network", backbone)
    diffusion = isinstance(backbone, DiffusionBackbone)
    return InfoResult(
        backbone=backbone.spec,
        network=type(network).__name__,
        parameters=_parameters(network if diffusion else backbone),
        channels=backbone.in_channels,
        image_size=backbone.image_size,
        noise=None if isinstance(backbone.process, Clean) else _noise(backbone.process),
        latents=_latents(backbone) if isinstance(backbone, DiffusionBackbone) else None,
        condition=_condition(backbone) if isinstance(backbone, DiffusionBackbone) else None,
        tap=backbone.tap if isinstance(backbone, TransformerBackbone) else None,
        time_embedding=_time_embedding(network),
        samplers=_samplers(backbone),
        blocks=tuple(BlockInfo(**asdict(block), cost=costs.get(block.index)) for block in backbone.blocks),
        defaults=_defaults(backbone),
        licence=licence,
        card=card,
        json=config.json,
    )


def block_costs(backbone: Backbone) -> dict[int, float]:
    """Return each block's share, in [0, 1], of the multiplications of all blocks.

    The network runs on shapes alone, without computing. A module that several blocks share counts in each
    block that runs it. Where blocks are no modules of their own, as in timm models, there is nothing to
    count, and the result is empty.
    """
    counted = dict.fromkeys((block.index for block in backbone.blocks), 0)
    with ExitStack() as stack:
        if backbone.device.type != "meta":
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        # fused attention on a CPU is not counted; its matrix products are
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        counter = stack.enter_context(FlopCounterMode(display=False))

        def watch(module: nn.Module, index: int) -> None:
            starts: list[int] = []
            before: Callable[..., None] = lambda *_: starts.append(counter.get_total_flops())  # noqa: E731

            def after(*_: Any) -> None:
                counted[index] += counter.get_total_flops() - starts.pop()

            for handle in (module.register_forward_pre_hook(before), module.register_forward_hook(after)):
                stack.callback(handle.remove)

        modules = {index: backbone.modules_of(index) for index in counted}
        # the tap of a transformer reads the norm of the next block, which counts there
        inside = {
            id(part) for each in modules.values() for module in each for part in [*module.modules()][1:]
        }
        for index, each in modules.items():
            for module in each:
                if id(module) not in inside:
                    watch(module, index)
        side = backbone.image_size
        shape = getattr(backbone, "input_shape", (backbone.in_channels, side, side))
        x_t: Tensor = torch.zeros(1, *shape, device=backbone.device)
        backbone.features(x_t, backbone.defaults.noise_step, [len(backbone.blocks)])
    total = sum(counted.values())
    return {index: count / total for index, count in counted.items()} if total else {}


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _noise(process: NoiseProcess) -> NoiseInfo:
    low, high = process.bounds
    first, last = process.log_snr(low), process.log_snr(high)
    scheduler = process.config.get("_class_name")
    written = {name: value for name, value in process.config.items() if not name.startswith("_")}
    return NoiseInfo(
        process=process.name,
        formula=process.describe(),
        unit=process.unit,
        bounds=(low, high),
        log_snr=(_finite(first), _finite(last)),
        rises=first > last,
        prediction=process.prediction,
        target=process.describe_prediction(),
        scheduler=None if scheduler is None else str(scheduler),
        used={name: written[name] for name in process.fields if name in written},
        unused=tuple(name for name in written if name not in process.fields),
    )


def _latents(backbone: DiffusionBackbone) -> LatentsInfo | None:
    autoencoder = backbone.autoencoder
    if autoencoder is None:
        return None
    return LatentsInfo(
        autoencoder=type(autoencoder.network).__name__,
        parameters=_parameters(autoencoder.network),
        channels=autoencoder.channels,
        side=backbone.input_shape[-1],
        stride=autoencoder.stride,
        scale=autoencoder.scales,
        shift=autoencoder.shifts,
    )


def _condition(backbone: DiffusionBackbone) -> ConditionInfo | None:
    if backbone.condition is None:
        return None
    return ConditionInfo(backbone.condition.name, condition_choices(backbone.network))


def _time_embedding(network: Any) -> str | None:
    """Return which formula of the time embedding counts: the authors of DiT and diffusers differ."""
    if not isinstance(network, DiTTransformer2DModel):
        return None
    times = next(module for module in network.modules() if isinstance(module, Timesteps))
    last = times.num_channels // 2 - int(times.downscale_freq_shift)
    whose = "diffusers', that of the folder's pipeline" if times.downscale_freq_shift else "the authors'"
    return f"frequencies 10000^(-k / {last}), {whose}"


def _samplers(backbone: Backbone) -> tuple[str, ...]:
    """Return the samplers that draw images from a backbone."""
    if not backbone.generates:
        return ()
    if isinstance(backbone, BiGANBackbone):
        return (OnePassSampler.name,)

    def draws(name: SamplerName) -> bool:
        try:
            make_sampler(backbone, name)
        except DiffLensError:
            return False
        return True

    return tuple(filter(draws, get_args(SamplerName)))


def _defaults(backbone: Backbone) -> DefaultsInfo:
    def log_snr(level: Level) -> float | None:
        return _finite(backbone.process.log_snr(level))

    places = backbone.defaults
    return DefaultsInfo(
        **asdict(places),
        log_snr=log_snr(places.noise_step),
        fusion_log_snr=tuple(map(log_snr, places.fusion_noise_steps)),
    )


def _card(spec: str) -> tuple[str | None, str | None]:
    """Return the licence that the model card's header states, and the card's path."""
    card = _card_file(spec.removeprefix("random:"))
    if card is None or not card.is_file():
        return None, None
    try:
        start, _, rest = read_text(card).replace("\r\n", "\n").partition("---\n")
        header = yaml_of(card, rest.partition("\n---")[0]) if rest and not start.strip() else None
    except DiffLensError as error:
        warn(f"the licence is not known: {error}")
        header = None
    licence = header.get("license") if isinstance(header, dict) else None
    return None if licence is None else str(licence), str(card)


def _card_file(name: str) -> Path | None:
    """Return where the model card of a backbone would be: in its folder, or in the hub's cache.

    A run of a head has that of the backbone which it reads.
    """
    if name in BUNDLED:
        return bundled_folder(name) / "README.md"
    folder = expanded(name)
    if folder.is_dir():
        home = network_folder(folder)
        beneath = backbone_beneath(home)
        return (
            home / "README.md" if beneath is None else _card_file(beneath.config.spec.removeprefix("random:"))
        )
    if folder.exists() or name.count("/") != 1:
        return folder / "README.md"
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "README.md")
    return Path(cached) if isinstance(cached, str) else None
