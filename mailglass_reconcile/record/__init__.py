"""What an application writes: a send, the events of a webhook, or one event, in its own transaction."""
