"""Tables of recipes: networks, pre-training, heads, extractors, and the paper's runs."""

from typing import Any

# U-Nets to pre-train: side of the images, channels per level, residual blocks per level, levels with
# attention (level i has stride 2**i), channels per head. Scale-shift norm as in ADM; "residual": also ADM's
# resampling by residual blocks and its normalised attention in the middle.
_ADM: dict[str, Any] = {"layers": 2, "head": 64, "groups": 32, "residual": True}
# for CPUs, with the strides that the paper reads on ADM-256: 2, 4, 8 and 16
_SMALL: dict[str, Any] = {"side": 64, "channels": (16, 32, 64, 96, 96), "layers": 1, "attention": (4,), "head": 16,
                          "groups": 8, "embedding": 64}  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "tiny": {"side": 16, "channels": (16, 32), "layers": 1, "attention": (1,), "head": 16, "groups": 8},
    "fashion-small": {"side": 32, "channels": (16, 32, 64, 64), "layers": 1, "attention": (3,), "head": 16, "groups": 8,
                      "embedding": 64, "in_channels": 1},
    "fashion-32": {"side": 32, "channels": (32, 64, 128, 96), "layers": 2, "attention": (3,), "head": 16,
                   "groups": 8, "embedding": 64, "in_channels": 1},
    # for photographs on a CPU, 4.7 M parameters: most of them at the coarse levels, where features are read
    "photos-32": {"side": 32, "channels": (16, 32, 96, 160), "layers": 1, "attention": (2, 3), "head": 32,
                  "groups": 8, "embedding": 128},
    # widths of DDPM (32, 256) and of improved DDPM (64), attention on maps of 16 and 8 pixels
    "rgb-32": {**_ADM, "side": 32, "channels": (128, 256, 256, 256), "attention": (1, 2)},
    "rgb-64": {**_ADM, "side": 64, "channels": (128, 256, 384, 512), "attention": (2, 3), "layers": 3},
    "rgb-128": {**_ADM, "side": 128, "channels": (128, 128, 256, 384, 512), "attention": (3, 4)},
    "rgb-256": {**_ADM, "side": 256, "channels": (128, 128, 256, 256, 512, 512), "attention": (4, 5)},
    # the paper's network: OpenAI's 256x256_diffusion_uncond, 552.8 M parameters with learned variance
    "adm-256": {**_ADM, "side": 256, "channels": (256, 256, 512, 512, 1024, 1024), "attention": (3, 4, 5)},
    # for scenes of `difflens scenes`: of grey Fashion-MNIST items, and in colour
    "scenes-64": {"side": 64, "channels": (32, 64, 128, 128), "layers": 2, "attention": (3,), "head": 16,
                  "groups": 8, "in_channels": 1},
    "scenes-rgb-64": {"side": 64, "channels": (64, 64, 128, 128), "layers": 2, "attention": (3,), "head": 16,
                      "groups": 8},
    "scenes-small": {**_SMALL, "in_channels": 1},
    "scenes-rgb-small": _SMALL,
}  # fmt: skip

# Encoders for the other methods of pre-training, of as many parameters as the U-Net of the same name: widths
# of a ResNet with one basic block a stage, for BiGAN, SimCLR and supervised training; width, depth and heads
# of a ViT with patches of 4 pixels, for masked autoencoding.
ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {"resnet": (16, 32, 48, 96), "vit": (64, 4, 4)},
    "fashion-small": {"resnet": (32, 64, 128, 256), "vit": (128, 6, 4)},
    "fashion-32": {"resnet": (64, 128, 256, 512), "vit": (192, 11, 3)},
}
ENCODER_STRIDE = 8
PATCH = 4

# Pre-training recipes: a U-Net of the table above and what differs from PretrainConfig's defaults. Epochs are
# meant for Fashion-MNIST, CIFAR-10 (rgb-32), a hundred thousand images, and ImageNet (adm-256, as long as the
# paper's).
_RGB: dict[str, Any] = {"batch_size": 128, "learning_rate": 1e-4, "ema_decay": 0.9999, "augment": "flip"}
_CPU: dict[str, Any] = {
    "epochs": 50,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "augment": "flip",
    "ema_decay": 0.999,
}
PRETRAIN: dict[str, dict[str, Any]] = {
    "tiny": {"unet": "tiny", "epochs": 1, "batch_size": 64},
    "fashion-32": {"unet": "fashion-32", "epochs": 200, "batch_size": 256, "learning_rate": 6e-4, "augment": "flip"},
    # for comparisons of methods on a CPU
    "fashion-small": {"unet": "fashion-small", "epochs": 20, "batch_size": 64, "learning_rate": 1e-3, "augment": "flip"},
    "photos-32": {"unet": "photos-32", "epochs": 60, "batch_size": 64, "learning_rate": 1e-3, "augment": "flip"},
    "rgb-32": {**_RGB, "unet": "rgb-32", "epochs": 500, "learning_rate": 2e-4},
    "rgb-64": {**_RGB, "unet": "rgb-64", "epochs": 300},
    "rgb-128": {**_RGB, "unet": "rgb-128", "epochs": 300},
    "rgb-256": {**_RGB, "unet": "rgb-256", "epochs": 300, "checkpoint_minutes": 10.0},
    "adm-256": {**_RGB, "unet": "adm-256", "epochs": 396, "batch_size": 256, "weight_decay": 0.0,
                "learned_variance": True, "checkpoint_minutes": 10.0},
    "scenes-64": {"unet": "scenes-64", "epochs": 100, "batch_size": 128, "learning_rate": 4e-4, "augment": "flip"},
    "scenes-rgb-64": {"unet": "scenes-rgb-64", "epochs": 100, "batch_size": 128, "learning_rate": 4e-4, "augment": "flip"},
    "scenes-small": {**_CPU, "unet": "scenes-small"},
    "scenes-rgb-small": {**_CPU, "unet": "scenes-rgb-small"},
}  # fmt: skip


# Differences from the preset's recipe for methods other than diffusion.
METHODS: dict[str, dict[str, Any]] = {
    "bigan": {"learning_rate": 5e-4, "weight_decay": 0.0, "ema_decay": 0.999},
    "simclr": {"learning_rate": 1e-3, "weight_decay": 1e-4},
    "mae": {"learning_rate": 1e-3, "weight_decay": 0.05},
    "supervised": {"learning_rate": 1e-3, "weight_decay": 0.05},
}


# The default training of classifiers.
TRAINING: dict[str, Any] = {
    "epochs": 20, "batch_size": 128, "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05,
    "lr_schedule": "cosine", "step_epochs": 7, "label_smoothing": 0.0, "mixup": 0.0, "augment": "none",
}  # fmt: skip

# How each head trains if nothing else is said. Chosen for the bundled backbone and 10,000 labels, on training
# images of Fashion-MNIST outside the bundled subset.
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"learning_rate": 3e-3, "epochs": 20},
    "mlp": {"learning_rate": 1e-3, "epochs": 12, "mixup": 0.5},
    "cnn": {"learning_rate": 1e-3, "epochs": 4, "mixup": 0.5},
    "attention": {"learning_rate": 3e-3, "epochs": 12, "mixup": 0.5},
    "difformer": {"learning_rate": 3e-3, "epochs": 6, "mixup": 0.5},
    "mix": {"learning_rate": 3e-3, "epochs": 12, "mixup": 0.5},
    "knn": {},
}

# Differences from the recipe of a head for each extractor.
EXTRACTORS: dict[str, dict[str, Any]] = {
    "frozen": {},
    "feedback": {"learning_rate": 2e-3, "epochs": 2, "mixup": 0.0, "augment": "flip"},
    "finetuned": {"learning_rate": 1e-3, "epochs": 3, "mixup": 0.0, "augment": "flip", "layer_decay": 0.85},
}

# With fewer training images than this, the epochs of recipes are increased, so that the number of steps is
# the same.
FEW_IMAGES = 2000

# OpenAI's file of the paper's network, 2.2 GB
ADM_256 = "256x256_diffusion_uncond.pt"
ADM_256_URL = f"https://openaipublic.blob.core.windows.net/diffusion/jul-2021/{ADM_256}"

# The paper's runs on ImageNet-1k with ADM-256: SGD without momentum or weight decay, learning rate x0.1 every
# 7 of 28 epochs, batch 32 on each of 4 GPUs (DifFeed: 4 on each).
_PAPER: dict[str, Any] = {
    "optimizer": "sgd", "weight_decay": 0.0, "lr_schedule": "step", "step_epochs": 7, "warmup_steps": 0,
    "epochs": 28, "batch_size": 128, "augment": "crop", "mixup": 0.0, "blocks": (24,), "noise_steps": (150,),
    "normalise": "none", "data": "folder:imagenet", "backbone": ADM_256,
}  # fmt: skip
# DifFeed (paper section 3.3): the attention head on the feedback extractor.
DIFFEED: dict[str, Any] = {"head": "attention", "extractor": "feedback"}
PROBE: dict[str, dict[str, Any]] = {
    "diffeed": DIFFEED,
    "paper-linear": {**_PAPER, "head": "linear", "learning_rate": 1e-2},  # 64.9 top-1
    # the paper's predecessor (arXiv 2307.08702), 61.95
    "paper-linear-1x1": {**_PAPER, "head": "linear", "learning_rate": 1e-2, "pool": 1, "noise_steps": (90,)},
    "paper-attention": {**_PAPER, "head": "attention", "learning_rate": 5e-2},  # 74.6
    "paper-difformer": {**_PAPER, "head": "difformer", "learning_rate": 5e-2, "blocks": (19, 24, 30),
                        "noise_steps": (90, 150, 300)},  # 76.0
    "paper-diffeed": {**_PAPER, **DIFFEED, "learning_rate": 1e-2, "batch_size": 16,
                      "feedback_blocks": (21, 24, 27, 30, 33, 36)},  # 77.0
}  # fmt: skip

# Heads on the bundled `photos`, chosen with 10,000 labels by 5,000 held-out training images of CIFAR-10
# (benchmarks/RESULTS.md).
_PHOTOS: dict[str, Any] = {"backbone": "photos", "blocks": (12,), "noise_steps": (50,), "epochs": 28}
_PHOTOS_TOKENS: dict[str, Any] = {**_PHOTOS, "pool": 4, "dropout": 0.2, "mixup": 0.5, "augment": "none"}
_PHOTOS_FUSED: dict[str, Any] = {**_PHOTOS_TOKENS, "blocks": (12, 13), "noise_steps": (5, 50)}
PROBE |= {
    "photos-linear": {**_PHOTOS, "head": "linear", "normalise": "whiten"},
    "photos-mlp": {**_PHOTOS, "head": "mlp"},
    "photos-attention": {**_PHOTOS_TOKENS, "head": "attention"},
    "photos-mix": {**_PHOTOS_FUSED, "head": "mix"},
    "photos-difformer": {**_PHOTOS_FUSED, "head": "difformer"},
    "photos-diffeed": {**_PHOTOS_TOKENS, **DIFFEED, "feedback_blocks": (12, 13)},
}

# Semi-supervised learning needs no recipes of its own: the paper's are those above, with 1 % or 10 % of the
# labels (`difflens.data.labels`).

# Fine-grained transfer: top-1 read off the paper's plot. The released code has no recipe for it, so each is
# the ImageNet recipe of its head on another data set.
PROBE |= {
    "paper-aircraft-linear": {**PROBE["paper-linear"], "data": "aircraft"},  # 31.5
    "paper-aircraft-attention": {**PROBE["paper-attention"], "data": "aircraft"},  # 64.0
    "paper-aircraft-difformer": {**PROBE["paper-difformer"], "data": "aircraft"},  # 65.3
    "paper-aircraft-diffeed": {**PROBE["paper-diffeed"], "data": "aircraft"},  # 73.2
    "paper-cars-linear": {**PROBE["paper-linear"], "data": "cars"},  # 26.4
    "paper-cars-attention": {**PROBE["paper-attention"], "data": "cars"},  # 71.3
    "paper-cars-difformer": {**PROBE["paper-difformer"], "data": "cars"},  # 77.2
    "paper-cars-diffeed": {**PROBE["paper-diffeed"], "data": "cars"},  # 82.7
    "paper-cub-linear": {**PROBE["paper-linear"], "data": "cub"},  # 25.2
    "paper-cub-attention": {**PROBE["paper-attention"], "data": "cub"},  # 66.1
    "paper-cub-difformer": {**PROBE["paper-difformer"], "data": "cub"},  # 72.4
    "paper-cub-diffeed": {**PROBE["paper-diffeed"], "data": "cub"},  # 71.0
    "paper-dogs-linear": {**PROBE["paper-linear"], "data": "dogs"},  # 56.9
    "paper-dogs-attention": {**PROBE["paper-attention"], "data": "dogs"},  # 78.9
    "paper-dogs-difformer": {**PROBE["paper-difformer"], "data": "dogs"},  # 81.3
    "paper-dogs-diffeed": {**PROBE["paper-diffeed"], "data": "dogs"},  # 80.4
    "paper-flowers-linear": {**PROBE["paper-linear"], "data": "flowers"},  # 75.4
    "paper-flowers-attention": {**PROBE["paper-attention"], "data": "flowers"},  # 88.1
    "paper-flowers-difformer": {**PROBE["paper-difformer"], "data": "flowers"},  # 89.7
    "paper-flowers-diffeed": {**PROBE["paper-diffeed"], "data": "flowers"},  # 90.1
    "paper-nabirds-linear": {**PROBE["paper-linear"], "data": "nabirds"},  # 18.3
    "paper-nabirds-attention": {**PROBE["paper-attention"], "data": "nabirds"},  # 63.7
    "paper-nabirds-difformer": {**PROBE["paper-difformer"], "data": "nabirds"},  # 69.2
    "paper-nabirds-diffeed": {**PROBE["paper-diffeed"], "data": "nabirds"},  # 70.7
}

# The paper's segmentation on ADE20K: UPerNet, 16,000 iterations at t = 90, mIoU 42.3 of block 24 alone, 44.3
# of the four, 44.0 of DifFeed. What it does not say (crop, optimiser, schedule) is the usual recipe of
# UPerNet in the field: crops of 512, SGD, polynomial decay, 16 images.
_ADE20K: dict[str, Any] = {
    "iterations": 16_000, "batch_size": 16, "optimizer": "sgd", "learning_rate": 1e-2, "weight_decay": 5e-4,
    "lr_schedule": "poly", "warmup_steps": 0, "scale": (0.5, 2.0), "side": 512, "width": 512, "noise_steps": (90,),
    "backbone": ADM_256,
}  # fmt: skip
SEGMENT: dict[str, dict[str, Any]] = {
    "paper-ade20k": {**_ADE20K, "blocks": (24, 27, 30, 33)},  # 44.3; with --extractor feedback 44.0
    "paper-ade20k-single": {**_ADE20K, "blocks": (24,)},  # 42.3
}

# The paper's figures on COCO are 41.8 box and 37.1 mask AP (read off its plot). Its schedule is not known;
# this is the usual one of 12 epochs of Mask R-CNN: 90,000 iterations of 16 images, learning rate x0.1 after
# 2/3 and 8/9 of them, but with squares of 512 pixels, not 800 x 1333.
DETECT: dict[str, dict[str, Any]] = {
    "paper-coco": {
        "iterations": 90_000, "batch_size": 16, "optimizer": "sgd", "learning_rate": 2e-2, "weight_decay": 1e-4,
        "lr_schedule": "step", "warmup_steps": 1000, "scale": (0.5, 1.5), "side": 512, "width": 256,
        "proposals": 1000, "blocks": (24, 27, 30, 33), "noise_steps": (90,), "backbone": ADM_256,
    },
}  # fmt: skip

# DIFT (Tang et al., 2023) on ADM-256: semantic matching as on SPair-71k, geometric as on HPatches, temporal as
# on DAVIS. Its "up block" k, counted from 0, is our block 20 + k.
_TEMPORAL: dict[str, Any] = {"block": 27, "noise_step": 51, "draws": 4}
MATCH: dict[str, dict[str, Any]] = {
    "dift-semantic": {"block": 24, "noise_step": 101, "draws": 8, "side": 512},
    "dift-geometric": {"block": 31, "noise_step": 41, "draws": 4, "side": 768},
    "dift-temporal": _TEMPORAL,
}
PROPAGATE: dict[str, dict[str, Any]] = {
    "dift-temporal": {**_TEMPORAL, "context": 28, "neighbours": 10, "radius": 15, "temperature": 0.1},
}
