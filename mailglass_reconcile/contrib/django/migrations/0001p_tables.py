"""Our revision 0001p; and the models, which Django does not make, so their keys are all that it has to know of them."""

from django.db import migrations, models

from mailglass_reconcile.contrib.django import migration_operations, project

VIEW_ONLY = {"managed": False, "default_permissions": ("view",)}


class Migration(migrations.Migration):
    """Our tables; and Mailglass's, if there are none."""

    atomic = False  # indexes are built concurrently
    initial = True
    dependencies = ()
    operations = (
        migration_operations.Migrate("0001p"),
        migrations.CreateModel(
            "Delivery",
            [("id", models.UUIDField(primary_key=True, serialize=False))],
            {
                "managed": False,
                "default_permissions": ("view", "delete"),
                "db_table": project.table("mailglass_deliveries"),
                "verbose_name_plural": "deliveries",
            },
        ),
        migrations.CreateModel(
            "Event",
            [("id", models.UUIDField(primary_key=True, serialize=False))],
            {**VIEW_ONLY, "db_table": project.table("mailglass_events")},
        ),
        migrations.CreateModel(
            "OpenOrphan",
            [
                (
                    "event",
                    models.OneToOneField(
                        "mailglass_reconcile.event",
                        models.DO_NOTHING,
                        primary_key=True,
                        serialize=False,
                        db_constraint=False,
                        related_name="open_orphan",
                    ),
                )
            ],
            {**VIEW_ONLY, "db_table": project.table("mailglass_open_orphans")},
        ),
    )
