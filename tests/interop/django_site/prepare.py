"""Fill the database: its tables, the user, and the applications that come as JSON on standard input."""

import json
import sys

import django
from django.core.management import call_command

django.setup()
call_command("migrate", verbosity=0)

from django.contrib.auth.models import User  # noqa: E402 - there are no models before the set-up
from oauth2_provider.models import Application  # noqa: E402

content = json.load(sys.stdin)
User.objects.create_user(**content["user"])
for application in content["applications"]:
    # In clear, or each request would cost half a second of hashing.
    Application.objects.create(hash_client_secret=False, **application)
