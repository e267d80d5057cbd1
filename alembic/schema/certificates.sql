-- The addresses of certificates of Amazon SES and Scaleway that have verified a webhook.

-- step: index mailglass_webhook_certificates_pkey
CREATE UNIQUE INDEX mailglass_webhook_certificates_pkey ON {schema}.mailglass_webhook_certificates (url);
