"""Links e-mail webhooks that arrive before the send has committed, exactly once."""

import lazy_loader

__version__ = "0.1.0"

# `__init__.pyi` names what is public, for type checkers and for this; loading all of it takes half a second.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
