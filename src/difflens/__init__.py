"""difflens: see what a frozen diffusion model already knows.

Public names stand in `__init__.pyi`. Each is imported when it is first used, so that `import difflens` is
quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
