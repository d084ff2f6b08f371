"""Options of `difflens pretrain`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from difflens import presets
from difflens.choices import Method, Prediction, ScheduleName, TrainingPrecision
from difflens.configs.options import (
    MAY_CHANGE,
    Batch,
    Count,
    DataOptions,
    DryRunOptions,
    Epochs,
    LogOptions,
    Natural,
    NonNegative,
    Range,
    ReadingOptions,
    ResumeOptions,
    Side,
)

# options that diffusion alone reads
_DIFFUSION = (
    *("init_from", "schedule", "prediction", "learned_variance", "min_snr_gamma"),
    *("accumulate", "checkpoint_activations", "compile"),
)

_RECIPE: dict[str, Any] = {
    "learning_rate": 2e-4,
    "augment": "none",
    "weight_decay": 0.01,
    "ema_decay": 0.9995,
    "schedule": "linear",
    "prediction": "epsilon",
    "learned_variance": False,
    "checkpoint_minutes": 1.0,
    "probe_every": 5,
}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(DataOptions, DryRunOptions, ReadingOptions, LogOptions, ResumeOptions):
    """Train a diffusion U-Net on images without labels, or an encoder by another method to compare it
    with."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = presets.PRETRAIN
    LIMITS: ClassVar[tuple[str, ...]] = ("limit",)

    data: str
    """Images to train on: any data that `probe` takes or, except for supervised, any folder of images."""
    preset: str = "fashion-32"
    """A recipe of `difflens.presets.PRETRAIN`: network, epochs and learning rate."""
    method: Method = "diffusion"
    """diffusion; bigan, a GAN with an encoder and BigBiGAN's losses; simclr; mae, masked autoencoding; or
    supervised, which alone uses labels. All but diffusion train encoders of the preset's size."""
    image_size: Side | None = None
    """Side of the images in pixels, a multiple of the network's largest stride. None: the preset's."""
    init_from: str | None = None
    """diffusion: a backbone whose weights the network and their average start from, such as RUN/model. Its
    architecture, schedule and prediction must be those of this training. None: fresh weights."""
    epochs: Epochs | None = None
    """Epochs of training. None: the preset's."""
    batch_size: Batch | None = None
    """Images in a step, over all processes and micro-batches. None: the preset's."""
    learning_rate: NonNegative | None = None
    """Peak learning rate of AdamW, with a linear warm-up and a cosine to zero. None: the preset's, or the
    method's."""
    augment: Literal["none", "flip"] | None = None
    """flip mirrors an image with probability 1/2; none mirrors no image. None: the preset's, or none."""
    warmup_steps: Natural = 500
    """Steps over which the learning rate rises linearly; at most a tenth of all steps."""
    weight_decay: NonNegative | None = None
    """Weight decay of AdamW. None: the preset's, or the method's, or 0.01."""
    ema_decay: Annotated[float, Range(0, 0.999999)] | None = None
    """diffusion, bigan: decay, at least 0 and below 1, of the average of the weights (EMA), which is saved.
    BiGAN averages its generator. With --init-from, the horizon 1 / (1 - decay) is at most a tenth of all
    steps. None: the preset's or the method's, or 0.9995."""
    precision: TrainingPrecision = "auto"
    """Floating-point format of the network: auto, float32 or bfloat16; weights stay float32. auto: bfloat16
    on a GPU; on a CPU the faster one for diffusion, by a measurement of two seconds at the start, and float32
    for other methods. --resume keeps the first choice."""
    schedule: ScheduleName | None = None
    """diffusion: noise schedule of 1000 steps; squaredcos_cap_v2 is the cosine schedule. None: linear."""
    prediction: Prediction | None = None
    """diffusion: the network predicts the noise (epsilon), or v, a mixture of noise and image. None:
    epsilon."""
    learned_variance: bool | None = None
    """diffusion: also learn the variance, by the hybrid loss of Nichol and Dhariwal (2021). None: the
    preset's, or False."""
    min_snr_gamma: Annotated[float, Range(1e-3, 10**6)] | None = None
    """diffusion: gamma of min-SNR weighting; Hang et al. (2023) propose 5. None: all noise steps have equal
    weight."""
    accumulate: Annotated[Batch, MAY_CHANGE] = 1
    """diffusion: micro-batches that a step is divided into. More of them take less memory."""
    checkpoint_activations: Annotated[bool, MAY_CHANGE] = False
    """diffusion: recompute activations in the backward pass. It takes much less memory, and steps are
    slower."""
    compile: Annotated[bool, MAY_CHANGE] = False
    """diffusion: compile the training step with torch.compile. This takes minutes, and steps are faster on a
    GPU."""
    limit: Count | None = None
    """Train on so many images, drawn by the seed; supervised: equally many of each class. None: all."""
    probe_data: str | None = None
    """Labelled images, as `probe` takes them, on which recognition is measured during the training. 1,000 of
    its training images are read, or 10 of each class if that is more. None: nothing is measured."""
    probe_every: Annotated[Count | None, MAY_CHANGE] = None
    """Epochs between two measurements on --probe-data: ridge and k-NN accuracy, and effective rank, at a few
    places. The last of --epochs is always measured. None: 5."""
    snapshot_epochs: Annotated[Count | None, MAY_CHANGE] = None
    """Epochs between two snapshots of the model, with generated samples, in `snapshots/`. None: no
    snapshots."""
    checkpoint_minutes: Annotated[NonNegative | None, MAY_CHANGE] = None
    """Minutes between two checkpoints. None: the preset's, or 1."""
    max_minutes: Annotated[NonNegative | None, MAY_CHANGE] = None
    """Stop with a checkpoint after so many minutes; --resume continues. None: train to the end."""

    @property
    def memory_advice(self) -> str:
        if self.method != "diffusion":
            return "lower --batch-size"
        return (
            "--accumulate divides a batch into micro-batches, --checkpoint-activations recomputes activations"
        )

    def recipe(self) -> Mapping[str, Any]:
        return {**_RECIPE, **presets.PRETRAIN[self.preset], **presets.METHODS.get(self.method, {})}

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.probe_data is None:
            yield "without --probe-data nothing is measured", ("probe_every",)
        if self.method != "diffusion":
            averaged = () if self.method == "bigan" else ("ema_decay",)
            yield f"the method {self.method} does not read options of diffusion", (*_DIFFUSION, *averaged)
