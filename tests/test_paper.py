"""The page of the paper's tables: every command runs dry, and takes what the page says."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from difflens import DiffLensError, load_backbone, plan
from difflens.cli import COMMANDS
from difflens.configs.options import Options
from difflens.parsing import parse
from difflens.presets import DETECT, PROBE, SEGMENT
from difflens.results.plan import in_hours

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"\| ([^|]+) \| ([^|]+) \| `difflens ([^`]+)` \|$", (ROOT / "docs" / "paper.md").read_text(), re.M
)


@pytest.mark.parametrize(("hours", "gigabytes", "command"), ROWS, ids=[row[2] for row in ROWS])
def test_a_command_takes_what_the_page_says(
    hours: str, gigabytes: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = plan(parsed(command))
    assert (in_hours(planned.hours), f"{planned.gigabytes:,.0f}") == (hours, gigabytes)
    assert not list(tmp_path.iterdir())


def parsed(command: str) -> Options:
    config: Options = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        args=[*shlex.split(command), "--dry-run"],
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return config


def test_a_recipe_of_the_paper_names_its_data_and_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = next(command for _, _, command in ROWS if "paper-linear --data folder:imagenet" in command)
    for dry in ("--dry-run", "--dry_run"):
        words = ["probe", "--preset", "paper-linear", "--precision", "bfloat16", dry]
        assert plan(parse(words, COMMANDS)) == plan(parsed(row))
    with pytest.raises(DiffLensError, match=r"download it from https://.*/256x256_diffusion_uncond\.pt"):
        load_backbone(PROBE["paper-linear"]["backbone"])


def test_every_recipe_of_the_paper_has_a_row() -> None:
    used = {word for _, _, command in ROWS for word in command.split() if word.startswith("paper-")}
    assert used == {name for table in (PROBE, SEGMENT, DETECT) for name in table if name.startswith("paper-")}


def test_the_paper_reads_what_the_recipes_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """28 epochs of batches of 128, four parameter counts of the paper, and the cost of block 24."""
    monkeypatch.chdir(tmp_path)
    shown = {}
    for name in ("linear", "attention", "difformer", "diffeed"):
        row = next(command for _, _, command in ROWS if f"paper-{name} --data folder:imagenet" in command)
        shown[name] = plan(parsed(row))
    assert [each.trainable_parameters for each in shown.values()] == [
        4_097_000,
        27_786_216,
        31_802_344,
        30_545_896,
    ]
    assert shown["linear"].steps == 28 * 10_010
    # 0.639 TFLOP an image at the end of block 24
    assert shown["linear"].operations["backbone"] == pytest.approx(28 * 1_281_167 * 0.639e12, rel=1e-3)
