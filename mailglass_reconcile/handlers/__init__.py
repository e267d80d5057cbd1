"""Reacting to events: an application's handlers, and the dispatcher that runs each once per event."""
