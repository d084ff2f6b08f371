"""`difflens presets`: the recipes that --preset takes, by command."""

from difflens import presets
from difflens.configs.options import resolve
from difflens.configs.presets import PresetsConfig
from difflens.results.presets import PresetsResult

_TABLES = {
    "probe": presets.PROBE,
    "pretrain": presets.PRETRAIN,
    "segment": presets.SEGMENT,
    "detect": presets.DETECT,
    "match": presets.MATCH,
    "propagate": presets.PROPAGATE,
}


def list_presets(config: PresetsConfig) -> PresetsResult:
    """Return the recipes of one command, or of all."""
    config = resolve(config)
    return PresetsResult({name: table for name, table in _TABLES.items() if config.of in (None, name)})
