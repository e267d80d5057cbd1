"""One module per provider, by its canonical name: verifying and reading its webhooks; beside it are samples of them."""
