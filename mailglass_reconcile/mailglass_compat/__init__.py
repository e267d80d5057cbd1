"""What exists only because Mailglass writes the tables; an installation without Mailglass never needs it."""
