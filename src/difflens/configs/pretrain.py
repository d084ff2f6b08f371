"""What pre-training is asked for: its options, and what those left out become."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from difflens import presets
from difflens.choices import Method, Precision, Prediction, ScheduleName
from difflens.errors import DiffLensError, listing, require

T = TypeVar("T")


@dataclass(frozen=True)
class PretrainConfig:
    """Train a diffusion U-Net on images without labels, or, by another method, an encoder to compare it with.

    A field left at None takes the preset's value, and where the preset has none the default that is named.
    """

    data: str
    """What to train on: as for `probe`, or, but for supervised training, a folder of images in any arrangement."""
    out: Path
    """Run directory; `model/` in it becomes a backbone: with diffusion, a diffusers-format folder."""
    preset: str = "fashion-32"
    """A recipe of `difflens.presets.PRETRAIN`."""
    method: Method = "diffusion"
    """diffusion; bigan, a GAN with an inference network and BigBiGAN's losses; simclr; mae, masked autoencoding;
    supervised, the only one that uses labels, of the training split. The other methods train encoders of the preset's
    size."""
    image_size: int | None = None
    """Side in pixels that images are brought to, if not the preset's; the network must be able to halve it."""
    epochs: int | None = None
    batch_size: int | None = None
    """Images per step, over all processes and micro-batches."""
    learning_rate: float | None = None
    """Peak of AdamW's learning rate, by default the method's, 2e-4 for diffusion; warmed up linearly, then cosine to zero."""
    flip: bool | None = None
    """Random horizontal flips; by default none."""
    warmup_steps: int = 500
    weight_decay: float | None = None
    """AdamW's; by default the method's, 0.01 for diffusion."""
    ema_decay: float | None = None
    """Decay per step of the averaged weights that are saved, float32: of diffusion, by default 0.9995, and of BiGAN's
    generator, by default 0.999. Other weights are not averaged."""
    precision: Precision | None = None
    """Of the network's arithmetic; weights stay float32. None: bfloat16 on a GPU, float32 on the CPU."""
    schedule: ScheduleName | None = None
    """From here to `compile` for diffusion alone. Noise schedule of 1000 steps, by default linear; squaredcos_cap_v2 is
    the cosine schedule."""
    prediction: Prediction | None = None
    """What the network predicts: by default the noise, or v, a mixture of noise and image."""
    learned_variance: bool | None = None
    """Learn the variance too, by the hybrid loss of Nichol and Dhariwal (2021); by default not."""
    min_snr_gamma: float | None = None
    """Min-SNR weighting (Hang et al., 2023), which proposes 5. None: all noise steps weigh the same."""
    accumulate: int = 1
    """Micro-batches per step, one after another: a step in less memory."""
    checkpoint_activations: bool = False
    """Gradient checkpointing: compute activations again in the backward pass, in much less memory."""
    compile: bool = False
    """torch.compile the training step: minutes of compiling for a faster step on a GPU."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
    limit: int | None = None
    """Use the first so many images only."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    snapshot_epochs: int | None = None
    """Also keep the averaged weights every so many epochs, under `snapshots/`, and draw a sample grid."""
    checkpoint_minutes: float | None = None
    """Write a checkpoint if the last one is this old, by default 1, looking every 50 steps."""
    max_minutes: float | None = None
    """Stop cleanly after so many minutes, looking every 50 steps; --resume goes on."""
    seed: int = 0
    resume: bool = False

    def resolved(self) -> "PretrainConfig":
        """With every None that the preset or the defaults know filled in.

        Raises:
            DiffLensError: there is no such method or preset, a number is outside its range, or an option is not the method's.
        """
        if self.method not in get_args(Method):
            raise DiffLensError(f"no method {self.method!r}; there are {listing(get_args(Method))}")
        if self.preset not in presets.PRETRAIN:
            raise DiffLensError(f"no preset {self.preset!r}; there are {listing(list(presets.PRETRAIN))}")
        require(
            image_size=(self.image_size, 1, None), epochs=(self.epochs, 1, None),
            batch_size=(self.batch_size, 1, None), learning_rate=(self.learning_rate, 0, None),
            warmup_steps=(self.warmup_steps, 0, None), weight_decay=(self.weight_decay, 0, None),
            ema_decay=(self.ema_decay, 0, 1), min_snr_gamma=(self.min_snr_gamma, 1e-3, None),
            accumulate=(self.accumulate, 1, None), limit=(self.limit, 1, None), workers=(self.workers, 0, None),
            snapshot_epochs=(self.snapshot_epochs, 1, None), max_minutes=(self.max_minutes, 0, None),
            checkpoint_minutes=(self.checkpoint_minutes, 0, None), seed=(self.seed, 0, 2**31),
        )  # fmt: skip
        unused = self._unused()
        recipe = {**_DEFAULTS, **presets.PRETRAIN[self.preset], **presets.METHODS.get(self.method, {})}
        return replace(self, **{
            key: value for key, value in recipe.items()
            if key not in ("unet", *unused) and getattr(self, key) is None
        })  # fmt: skip

    def _unused(self) -> tuple[str, ...]:
        """Options that mean nothing to the method; DiffLensError if one is given."""
        if self.method == "diffusion":
            return ()
        unused = _DIFFUSION if self.method == "bigan" else (*_DIFFUSION, "ema_decay")
        defaults = {field.name: field.default for field in fields(self)}
        given = [f"--{name.replace('_', '-')}" for name in unused if getattr(self, name) != defaults[name]]
        if given:
            raise DiffLensError(f"the method {self.method} has no use for {listing(given)}: leave that out")
        return unused


def given(value: T | None) -> T:
    """A field that `resolved` has filled in."""
    assert value is not None, "the preset fills this in"
    return value


# What no other method than diffusion knows.
_DIFFUSION = (
    "schedule", "prediction", "learned_variance", "min_snr_gamma", "accumulate", "checkpoint_activations", "compile"
)  # fmt: skip

# Where neither the user nor the preset says anything.
_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-4,
    "flip": False,
    "weight_decay": 0.01,
    "ema_decay": 0.9995,
    "schedule": "linear",
    "prediction": "epsilon",
    "learned_variance": False,
    "checkpoint_minutes": 1.0,
}
