"""Records SES's events from an SQS queue, in place of a receiver with a public URL; see README.md."""

import logging
import os
import sys

import boto3
import sqlalchemy as sa

from mailglass_reconcile import broadcast, record_webhook
from mailglass_reconcile.webhooks import InvalidWebhookError, parse

engine = sa.create_engine(os.environ["MAILGLASS_DATABASE_URL"])
sqs = boto3.client("sqs")


def consume(queue_url: str) -> None:
    """Wait up to 20 seconds for messages, and record the events of each."""
    for message in sqs.receive_message(QueueUrl=queue_url, WaitTimeSeconds=20).get("Messages", []):
        try:
            events = parse("ses", message["Body"].encode())
        except InvalidWebhookError as error:  # it comes again, and then goes to the dead-letter queue
            logging.warning("a message cannot be read: %s", error)
            continue
        with engine.begin() as connection:
            recorded = record_webhook(connection, provider="ses", events=events)
        broadcast(recorded)
        sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])


if __name__ == "__main__":
    while True:
        consume(sys.argv[1])
