"""Links e-mail webhook events that arrived before their delivery had committed."""

import lazy_loader

__version__ = "0.1.0"

# `__init__.pyi` names what is public, for type checkers and for this; loading all of it takes half a second.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
