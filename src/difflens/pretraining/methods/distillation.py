"""Distillation of a diffusion U-Net into one that reads clean images (after CleanDIFT, Stracke et al., 2024).

The teacher reads x_t at any noise step t. The student, a copy of it, reads x_0 and is told one fixed time.
At each chosen block an adapter, which knows t, maps the student's features f(x_0) to the teacher's:

    loss = mean over blocks and positions of 1 - cos(adapter_b(f_b(x_0), t), teacher_b(x_t, t))
"""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from difflens.backbones.base import Backbone
from difflens.backbones.distilled import write_distilled
from difflens.backbones.unet import UNetBackbone
from difflens.configs.distill import DistillConfig
from difflens.configs.options import given
from difflens.data.images import to_float
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, counted
from difflens.noise import seeded_noise
from difflens.pretraining.export import Card, images_seen
from difflens.pretraining.methods.base import PretrainingMethod
from difflens.processes.clean import Clean
from difflens.processes.variance_preserving import VariancePreserving
from difflens.run.text import markdown_code
from difflens.training.optimisers import ParameterGroup, epoch_seed, make_optimizer

TIME = 0
"""The time that the student is told: that of the teacher's least noise."""
_EMBEDDING = 64


class Adapter(nn.Module):
    """A residual perceptron at each position of a map, whose hidden layer is scaled and shifted by t.

    It is the identity at the start, as its last layer is 0.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.inside = nn.Conv2d(channels, channels, 1)
        self.time = nn.Sequential(
            Timesteps(_EMBEDDING, flip_sin_to_cos=True, downscale_freq_shift=0),
            nn.Linear(_EMBEDDING, _EMBEDDING),
            nn.SiLU(),
            nn.Linear(_EMBEDDING, 2 * channels),
        )
        self.out = nn.Conv2d(channels, channels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Tensor, t: Tensor) -> Tensor:
        """Return maps, (B, C, H, W), for noise steps t, (B,) long."""
        scale, shift = self.time(t)[..., None, None].chunk(2, 1)
        hidden = self.inside(self.norm(maps)) * (1 + scale) + shift
        return maps + self.out(nn.functional.silu(hidden))


def check_teacher(backbone: Backbone) -> None:
    """Raise DiffLensError, which says why, for a backbone that cannot be distilled."""
    if isinstance(backbone.process, Clean):
        raise DiffLensError(
            f"{backbone.spec} reads clean images already: distill is for a diffusion network, whose features "
            "depend on noise"
        )
    if not isinstance(backbone, UNetBackbone) or backbone.latent_shape or backbone.condition is not None:
        raise DiffLensError(
            f"{backbone.spec} cannot be distilled: distill is for unconditional U-Nets that read pixels"
        )
    if not isinstance(backbone.process, VariancePreserving):
        raise DiffLensError(
            f"{backbone.spec} cannot be distilled: its process is {backbone.process.name}, and distill is "
            "for variance-preserving networks, which take an image without noise as it is"
        )
    with torch.device("meta"):
        again = type(backbone.unet).from_config(backbone.unet.config)
    if _outline(again) != _outline(backbone.unet):
        raise DiffLensError(
            f"{backbone.spec} cannot be distilled: the configuration of diffusers does not describe its "
            "layers or attention heads, so its student could not be loaded"
        )


def _outline(network: nn.Module) -> list[tuple[str, object]]:
    """Return the shapes of all weights, and the numbers of heads of all attention layers, by name."""
    shapes = [(name, tuple(weight.shape)) for name, weight in network.named_parameters()]
    heads = [(name, module.heads) for name, module in network.named_modules() if hasattr(module, "heads")]
    return [*shapes, *heads]


class Distillation(PretrainingMethod):
    """A student that is trained on the maps of a frozen teacher.

    Args:
        config, images, process: as for all methods.
        teacher: a backbone that `check_teacher` accepts.

    Attributes:
        blocks: the blocks whose maps agree.
    """

    description = "1 - cosine of the student's adapted maps and the teacher's, mean over blocks and positions"
    config: DistillConfig

    def __init__(
        self, config: DistillConfig, images: ImageSplit, process: Accelerator, teacher: UNetBackbone
    ):
        super().__init__(config, images, process)
        own = [block.index for block in teacher.blocks if block.role != "encoder"]
        self.blocks = teacher.check_blocks(config.blocks or own)
        self.channels, self.side = teacher.in_channels, teacher.image_size
        self.images_before = images_seen(given(config.backbone))
        unet = copy.deepcopy(teacher.unet)
        unet.register_to_config(sample_size=self.side)
        self.student = UNetBackbone(unet, Clean(TIME), "student", teacher.image_size).to(self.device)
        unet.requires_grad_(True)
        self.teacher = teacher.to(self.device)
        self.adapters = nn.ModuleDict(
            {str(index): Adapter(teacher.block(index).channels) for index in self.blocks}
        ).to(self.device)
        self.trained = nn.ModuleDict({"student": unet, "adapters": self.adapters})
        rate, decay = given(config.learning_rate), config.weight_decay
        self.optimizer = make_optimizer("adamw", ParameterGroup(self.trained.parameters(), rate, decay))
        self.rates = self.make_rates(self.optimizer)

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        generator = torch.Generator().manual_seed(epoch_seed(self.config.seed, epoch))
        low, high = self.teacher.process.bounds
        t = torch.randint(int(low), int(high) + 1, (len(self.images),), generator=generator)
        self.t = t.to(self.device)

    def step(self, batch: Batch) -> Tensor:
        x_0, t = to_float(batch.images), self.t[batch.rows.to(self.device)]
        noise = seeded_noise(tuple(x_0.shape[1:]), batch.index, t, self.config.seed, self.epoch + 1)
        self.optimizer.zero_grad()
        with self.autocast():
            with torch.no_grad():
                wanted = self.teacher.features(self.teacher.add_noise(x_0, t, noise), t, self.blocks)
            found = self.student.features(x_0, 0, self.blocks)
            losses = [
                1 - _cosine(self.adapters[str(index)](found[index], t), wanted[index])
                for index in self.blocks
            ]
        loss = torch.stack(losses).mean()
        loss.backward()
        self.average_gradients(self.trained.parameters())
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimizer.step()
        self.rates.step()
        return loss.detach()

    def weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.trained.parameters()]

    def parts(self) -> dict[str, Any]:
        return {"networks": self.trained, "optimizer": self.optimizer, "rates": self.rates}

    def backbone(self) -> UNetBackbone:
        unet = copy.deepcopy(self.student.unet).cpu().half().float()
        return UNetBackbone(unet, Clean(TIME), "distilled", self.side).to(self.device)

    def write(self, folder: Path, backbone: UNetBackbone) -> None:
        backbone.unet.cpu().half().save_pretrained(folder / "unet")
        write_distilled(folder, Clean(TIME))

    def card(self) -> Card:
        teacher = markdown_code(given(self.config.backbone))
        return Card(
            title="U-Net without noise",
            introduction=f"Distilled by difflens from {teacher}, without labels: it reads clean images in "
            "one pass, and generates none. "
            f"{counted(self.student.unet.num_parameters(), 'parameter')}, float16.",
            library="difflens",
            tags=("image-feature-extraction", "difflens"),
        )

    def facts(self) -> dict[str, str]:
        adapters = sum(parameter.numel() for parameter in self.adapters.parameters())
        return {
            "blocks": ", ".join(map(str, self.blocks)),
            "adapters": f"{counted(adapters, 'parameter')}, not kept",
        }


def _cosine(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean over images and positions of the cosine between vectors of channels, ()."""
    return nn.functional.cosine_similarity(found.float(), wanted.float(), dim=1).mean()
