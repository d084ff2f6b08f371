"""The tables of generation in RESULTS.md: quality next to reference distances, samplers, accuracy and quality
along pre-training.

Usage: python benchmarks/generation.py --out FOLDER --space SPACE [--data DATA] [--backbone BACKBONE]
           [--previous BACKBONE] [--trail BACKBONE ...] [--images 10000] [--sampler-images 10000]
           [--batch-size 500]

SPACE is where distances are measured: a probe's run directory, which also judges the samples' classes, or a
backbone. `--trail` names the snapshots of a pre-training, oldest first. Everything lies in FOLDER and is
taken up again there; the tables are printed and written to FOLDER/tables.md.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from difflens import FidelityConfig, FidelityResult, GenerateConfig, ProbeConfig, fidelity, generate, probe
from difflens.choices import HeadName, SamplerName

SAMPLERS: tuple[tuple[SamplerName, int], ...] = (
    ("ddpm", 1000),
    ("ddim", 50),
    ("ddim", 100),
    ("dpm-solver", 20),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path
    space: str
    """A probe's run directory, or a backbone."""
    data: str = "fashion-full"
    backbone: str = "fashion"
    previous: str | None = None
    """A backbone to compare with."""
    trail: tuple[str, ...] = ()
    """Snapshots of a pre-training, oldest first."""
    heads: tuple[HeadName, ...] = ("linear", "attention")
    """The head that reads the snapshots."""
    blocks: tuple[int, ...] | None = None
    """Where they read; None: the paper's place, scaled, as for any folder. The bundled backbone's own is
    block 18."""
    noise_steps: tuple[int, ...] | None = None
    """Likewise; the bundled backbone's own is 5."""
    probe_images: int | None = None
    """Train those heads on the first so many images."""
    images: int = 10_000
    """To generate from each backbone."""
    trail_images: int = 10_000
    """From each snapshot."""
    sampler_images: int = 10_000
    """With each sampler: DDPM takes a pass through the network for each of its 1,000 steps."""
    sampler: SamplerName = "ddim"
    """The sampler of the comparisons between backbones."""
    steps: int = 50
    """The steps of that sampler."""
    limit: int | None = None
    """Compare with so many test images only."""
    batch_size: int = 500
    """The comparison of samplers."""
    samplers: bool = True
    """False leaves the table of samplers out, of which DDPM takes nearly all the time."""
    seed: int = 0


def drawn(
    config: Config, backbone: str, number: int, sampler: tuple[SamplerName, int] | None = None
) -> tuple[Path, float]:
    """The folder of so many images, made if it is not there, and the images/s of making them."""
    name, steps = sampler or (config.sampler, config.steps)
    place = backbone.strip("/").replace("/", "-")
    folder, rate_file = (
        config.out / kind / f"{place}-{name}-{steps}-{number}" for kind in ("images", "rates")
    )
    result = generate(
        GenerateConfig(
            out=folder,
            n=number,
            backbone=backbone,
            sampler=name,
            steps=steps,
            batch_size=config.batch_size,
            seed=config.seed,
            resume=(folder / "config.yaml").exists(),
        )
    )
    if not rate_file.exists():
        rate_file.parent.mkdir(exist_ok=True)
        rate_file.write_text(str(result.images_per_second))
    return folder, float(rate_file.read_text())


def measured(config: Config, folder: Path, references: bool = False) -> FidelityResult:
    return fidelity(
        FidelityConfig(
            samples=folder,
            data=config.data,
            features=config.space,
            reference_distances=references,
            limit=config.limit,
            seed=config.seed,
        )
    )


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def head(*columns: str) -> list[str]:
    return ["", row(*columns), row(*["---"] * len(columns))]


def kid(distance: Any) -> str:
    return distance.kid_text


def quality(config: Config) -> list[str]:
    """Samples and reference distances; the classes of the samples."""
    result = measured(config, drawn(config, config.backbone, config.images)[0], references=True)
    sets = [(f"samples of {config.backbone}", result.sample_distance)]
    if config.previous is not None:
        sets.append(
            (
                f"samples of {config.previous}",
                measured(config, drawn(config, config.previous, config.images)[0]).sample_distance,
            )
        )
    sets += [(each.images, each) for each in result.reference_distances]
    lines = [
        f"Features: {result.space}. Compared with {result.real_images:,} {result.real}. "
        f"Samples: {config.sampler}, {config.steps} steps, seed {config.seed}."
    ]
    lines += head("images", "number", "Fréchet distance", "KID x 1,000")
    lines += [row(name, f"{each.count:,}", f"{each.frechet:.4g}", kid(each)) for name, each in sets]
    if result.class_shares is not None:
        lines += head("class of the samples", "share, %")
        lines += [row(name, f"{100 * share:.1f}") for name, share in result.class_shares.items()]
    return lines


def samplers(config: Config) -> list[str]:
    found = [(each, *drawn(config, config.backbone, config.sampler_images, each)) for each in SAMPLERS]
    slowest = found[0][2]
    lines = head("sampler", "steps", "Fréchet distance", "KID x 1,000", "images/s, DDPM = 1")
    for (name, steps), folder, rate in found:
        distance = measured(config, folder).distances[0]
        lines.append(
            row(name, f"{steps:,}", f"{distance.frechet:.4g}", kid(distance), f"{rate / slowest:.1f}")
        )
    return lines


def along_pretraining(config: Config) -> list[str]:
    lines = head(
        "backbone", *(f"{name}, top-1 %" for name in config.heads), "Fréchet distance", "KID x 1,000"
    )
    for number, backbone in enumerate(config.trail):
        accuracies = []
        for name in config.heads:
            out = config.out / "probes" / f"{number}-{name}"
            if not (out / "metrics.json").exists():
                probe(
                    ProbeConfig(
                        out=out,
                        backbone=backbone,
                        data=config.data,
                        head=name,
                        normalise="none" if name == "linear" else None,
                        limit=config.probe_images,
                        blocks=config.blocks,
                        noise_steps=config.noise_steps,
                        seed=config.seed,
                        resume=(out / "config.yaml").exists(),
                    )
                )
            accuracies.append(f"{100 * json.loads((out / 'metrics.json').read_text())['top1']:.2f}")
        distance = measured(config, drawn(config, backbone, config.trail_images)[0]).distances[0]
        lines.append(row(backbone, *accuracies, f"{distance.frechet:.4g}", kid(distance)))
    return lines


def main(config: Config) -> None:
    (config.out / "images").mkdir(parents=True, exist_ok=True)
    tables = [("Quality", quality)]
    if config.trail:
        tables.append(("Along pre-training", along_pretraining))
    if config.samplers:
        tables.append(("Samplers", samplers))
    text = ""
    for title, table in tables:
        part = "\n".join([f"## {title}", "", *table(config), "", ""])
        print(part, flush=True)
        text += part
        (config.out / "tables.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Config, config=(tyro.conf.FlagCreatePairsOff,)))
