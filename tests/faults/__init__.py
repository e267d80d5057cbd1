"""Faults of servers, connections, processes and rows."""
