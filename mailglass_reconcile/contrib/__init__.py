"""Other people's frameworks: each module imports its own, and nothing else imports it."""
