"""Faults on purpose: the servers, proxies and processes that the fault tests use, and the table of their runs."""
