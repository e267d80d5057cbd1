"""The providers: their definitions, and what reads, verifies and looks up webhooks with them; it needs no database."""
