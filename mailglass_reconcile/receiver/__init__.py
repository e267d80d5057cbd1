"""The receiver of providers' webhooks: an ASGI application, and the function for any other framework."""
