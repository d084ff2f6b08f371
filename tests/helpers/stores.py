"""Extracts several stores, one after the other, in as many processes as start this module.

Its argument is a JSON file: a list of options of `extract`, by name.
"""

import json
import sys
from pathlib import Path

from difflens import ExtractConfig, extract
from difflens.run.processes import leave_together

if __name__ == "__main__":
    for options in json.loads(Path(sys.argv[1]).read_text()):
        lists = {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
        extract(ExtractConfig(**{**options, **lists, "out": Path(options["out"])}))
    leave_together()
