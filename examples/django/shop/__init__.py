"""A Django project that sweeps; its Celery app is loaded with it, as Celery's documentation advises."""

from shop.celery import app

__all__ = ["app"]
