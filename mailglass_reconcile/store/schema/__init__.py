"""The schema's text: its steps and revisions, who owns its objects, and where they are; no connection."""
