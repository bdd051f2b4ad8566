"""The serving.py that these extensions fit: `from .core import Extension`.

This module is serving.py under a second name: the file beside this folder, in the same package or
at the top level. Only this module knows which; all others import from here.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving import *  # noqa: F403
    from serving import __version__ as __version__
else:
    if "." in __package__:
        from .. import serving
    else:
        import serving
    sys.modules[__name__] = serving
