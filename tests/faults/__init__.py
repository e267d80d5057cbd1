"""Fault injection: the servers, proxies and processes of the fault tests, and the table of their runs."""
