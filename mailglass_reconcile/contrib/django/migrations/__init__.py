"""A Django migration for each revision of the schema: it runs `migrate`, which skips the steps that are done."""
