"""The demo: real servers from wheels, and webhooks that arrive before their deliveries have committed."""
