"""The application for an ASGI server, uvicorn say: at its end, what the views have left is done."""

import os

from django.core.asgi import get_asgi_application

from omniloop.ext.asgi import with_lifespan

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = with_lifespan(get_asgi_application())
