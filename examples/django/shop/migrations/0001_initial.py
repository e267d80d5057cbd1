"""The shop's tables."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Orders and suppressed addresses."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            "Order",
            [
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("tenant", models.CharField(max_length=50)),
                ("email", models.EmailField(max_length=254)),
                ("message_id", models.CharField(blank=True, max_length=200)),
            ],
        ),
        migrations.CreateModel(
            "Suppressed",
            [
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("tenant", models.CharField(max_length=50)),
                ("email", models.EmailField(max_length=254)),
            ],
            {"constraints": [models.UniqueConstraint(fields=["tenant", "email"], name="shop_suppressed_once")]},
        ),
    )
