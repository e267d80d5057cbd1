"""Compatibility with tables that Mailglass writes; an installation without Mailglass never needs it."""
