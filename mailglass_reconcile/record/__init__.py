"""The functions with which an application records sends, webhooks and single events, in its own transaction."""
