"""One module per table, or group of tables: every statement that writes it, and the reads that writers need."""
