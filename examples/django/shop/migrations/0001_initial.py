"""The shop's tables."""

from django.db import migrations, models


def key() -> tuple[str, models.Field]:
    """Return a table's key."""
    return "id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


class Migration(migrations.Migration):
    """Orders, suppressed addresses, tickets."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            "Order",
            [
                key(),
                ("email", models.EmailField(max_length=254)),
                ("message_id", models.CharField(blank=True, max_length=200)),
            ],
        ),
        migrations.CreateModel("Suppressed", [key(), ("email", models.EmailField(max_length=254, unique=True))]),
        migrations.CreateModel(
            "Ticket", [key(), ("event_id", models.UUIDField(unique=True)), ("delivery_id", models.UUIDField())]
        ),
    )
