"""The definition of each provider, by its canonical name: verifying and reading its webhooks, with samples of them."""
