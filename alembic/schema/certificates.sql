-- The addresses of certificates of Amazon SES and Scaleway that have verified a webhook.

-- step: table mailglass_webhook_certificates
CREATE TABLE {schema}.mailglass_webhook_certificates (
  url         text PRIMARY KEY,
  provider    text NOT NULL,
  verified_at timestamp NOT NULL
);
COMMENT ON TABLE {schema}.mailglass_webhook_certificates IS
  'mailglass-reconcile: where the certificates are that have verified a webhook, at most 32';
