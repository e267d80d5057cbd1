-- How raw webhooks are pruned.

-- step: index mailglass_webhook_events_prune_idx
CREATE INDEX mailglass_webhook_events_prune_idx ON {schema}.mailglass_webhook_events (status, inserted_at);
