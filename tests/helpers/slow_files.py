"""difflens on a shared file system where it takes a while until a renamed file has its name."""

import os
import runpy
import time
from typing import Any

if __name__ == "__main__":
    rename = os.replace

    def slowly(*arguments: Any, **options: Any) -> None:
        time.sleep(0.5)
        rename(*arguments, **options)

    os.replace = slowly
    runpy.run_module("difflens", run_name="__main__", alter_sys=True)
