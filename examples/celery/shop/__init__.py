"""A shop that sends receipts by Postmark from a Celery task; see README.md."""
