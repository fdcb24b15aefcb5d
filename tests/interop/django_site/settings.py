"""Django with django-oauth-toolkit, as its documentation sets it up. What differs between runs comes as JSON."""

import json
import os
from pathlib import Path

RUN = json.loads(os.environ["DJANGO_SITE"])
"""``directory``, ``rsa_key`` (PEM), and ``oauth2`` (settings of the toolkit)."""

SECRET_KEY = "of the tests, on loopback"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "oauth2_provider",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [Path(__file__).with_name("templates")],
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(RUN["directory"]) / "site.db",
        # Writers wait for each other in place of failing.
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL;"},
    }
}
OAUTH2_PROVIDER = {
    "OIDC_ENABLED": True,
    "OIDC_RSA_PRIVATE_KEY": RUN["rsa_key"],
    "SCOPES": {"openid": "Who you are", "read": "What is yours", "introspection": "Whether a token lives"},
    **RUN["oauth2"],
}
