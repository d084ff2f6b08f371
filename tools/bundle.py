"""Bundle a network that `difflens pretrain` has trained: copy it into the package, with its model card.

    python tools/bundle.py RUN NAME --images WORDS --licence ID --hardware WORDS --fidelity RUN_OF_FIDELITY

The next start of difflens knows it by NAME; where --backbone is left out, it is read for images with its
number of channels. CONTRIBUTING.md has the commands that come before.
"""

import argparse
import re
import shutil
from pathlib import Path

from safetensors import safe_open

from difflens.results.fidelity import FidelityResult
from difflens.run.directory import read_results

ASSETS = Path(__file__).parents[1] / "src" / "difflens" / "assets"
LIMIT = 10_000_000
"""The most bytes of a bundled network."""


def bundle(
    run: Path, name: str, images: str, licence: str, hardware: str, distances: Path, assets: Path = ASSETS
) -> Path:
    """Copy the model of a finished pre-training to `assets`/`name`; return this folder.

    Args:
        run: run directory of `difflens pretrain`.
        images: what the network was trained on and where it is from, in words.
        licence: the licence of the weights, as the Hugging Face hub spells it.
        hardware: the machine, in words; the format of its arithmetic stays as the card has it.
        distances: run directory of `difflens fidelity` on samples of the network.

    Raises:
        SystemExit: the training is not finished, the weights are not float16, the network is too large, the
            distance is of another network, or `assets`/`name` exists.
    """
    model, target = run / "model", assets / name
    card = (model / "README.md").read_text(encoding="utf-8")
    done, of = re.findall(r"\| epochs \| (\d+) of (\d+) \|", card)[0]
    if done != of:
        raise SystemExit(f"{run} has trained {done} of {of} epochs: go on with --resume first")
    with safe_open(model / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    if kinds != {"F16"} or size > LIMIT:
        raise SystemExit(f"{model} has {size:,} bytes in {kinds}: at most {LIMIT:,} in float16 are bundled")
    measured = read_results(distances, FidelityResult.from_metrics)
    source = measured.source
    if source is None or Path(source.backbone).resolve() != model.resolve():
        raise SystemExit(f"{distances} did not measure samples of {model}")
    if target.exists():
        raise SystemExit(f"{target} exists: remove it first")
    shutil.copytree(model, target)
    (target / "README.md").write_text(completed(card, images, licence, hardware, measured), encoding="utf-8")
    return target


def completed(card: str, images: str, licence: str, hardware: str, measured: FidelityResult) -> str:
    """Return a model card without paths of this machine, with licence, origin, hardware and distance."""
    first = measured.sample_distance
    distance = (
        f"{first.frechet:.4g} between {first.count:,} samples and {measured.real_images:,} {measured.real}, "
        f"in the space of {measured.space}"
    )
    others = [f"{row.count:,} {row.images}: {row.frechet:.4g}" for row in measured.reference_distances]
    rows = {"images": images, "Fréchet distance": "; ".join([_without_paths(distance), *others])}
    lines = []
    for line in card.replace("---\nlibrary_name", f"---\nlicense: {licence}\nlibrary_name", 1).splitlines():
        if line.startswith("| images |"):
            line = f"| images | {rows['images']} |"
        elif line.startswith("| hardware |"):
            line = f"| hardware | {hardware}, {line.rpartition(', ')[2]}"
        elif line.startswith("| command |"):
            line = _without_paths(line)
        lines.append(line)
        if line.startswith("| final loss"):
            lines.append(f"| Fréchet distance | {rows['Fréchet distance']} |")
    return "\n".join(lines) + "\n"


def _without_paths(text: str) -> str:
    """Return text in which each absolute path is its last name."""
    return re.sub(r"(?<![\w.])/(?:[^\s/|`]+/)*([^\s/|`,]+)", r"\1", text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--images", required=True, help="what it was trained on, and where that is from")
    parser.add_argument("--licence", required=True, help="of the weights, such as mit")
    parser.add_argument("--hardware", required=True, help="such as: two cores of an AMD EPYC")
    parser.add_argument("--fidelity", type=Path, required=True, help="run directory of difflens fidelity")
    asked = parser.parse_args()
    target = bundle(asked.run, asked.name, asked.images, asked.licence, asked.hardware, asked.fidelity)
    print(f"{target}: {sum(path.stat().st_size for path in target.rglob('*') if path.is_file()):,} bytes")


if __name__ == "__main__":
    main()
