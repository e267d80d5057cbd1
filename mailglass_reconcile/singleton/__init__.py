"""The lock that keeps one sweep from being queued or run twice, and the task class that uses it."""
