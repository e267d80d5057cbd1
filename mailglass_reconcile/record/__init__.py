"""What an application writes: the events of a webhook, or one event, in its own transaction."""
