"""The page: a read-only ASGI application to mount or to serve; needs the extra `web`."""

from mailglass_reconcile.web.app import create_app

__all__ = ["create_app"]
