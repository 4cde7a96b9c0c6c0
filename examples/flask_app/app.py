"""
A sync Flask application: a view registers an account, answers at once, and leaves mail, audit log and webhook to `go`.

    python collector.py 8001 &
    SERVICE=http://127.0.0.1:8001 DATABASE=accounts.sqlite gunicorn --workers 2 --bind 127.0.0.1:8000 app:app
    curl -d name=ada http://127.0.0.1:8000/accounts
"""

import os
import sqlite3
from contextvars import ContextVar

import aiohttp
from flask import Flask, g, jsonify, request

from omniloop import go

SERVICE = os.environ.get("SERVICE", "http://127.0.0.1:8001")
DATABASE = os.environ.get("DATABASE", "accounts.sqlite")

# Set in the view, seen in the task: `go` hands on a copy of the caller's context.
request_id: ContextVar[str] = ContextVar("request_id", default="none")

app = Flask(__name__)


def database() -> sqlite3.Connection:
    if "database" not in g:
        g.database = sqlite3.connect(DATABASE, timeout=10)
        g.database.execute("CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
    return g.database


@app.teardown_appcontext
def close_database(error: BaseException | None) -> None:
    connection = g.pop("database", None)
    if connection is not None:
        connection.close()


async def tell(kind: str, account: int) -> None:
    """Tell the service beside us, as a mailer or a webhook does."""
    url, headers = f"{SERVICE}/{kind}/{account}", {"X-Request-Id": request_id.get()}
    async with aiohttp.ClientSession(raise_for_status=True) as client, client.post(url, headers=headers):
        pass


@app.post("/accounts")
def register():
    request_id.set(request.headers.get("X-Request-Id", "none"))
    with database() as connection:
        account = connection.execute("INSERT INTO account (name) VALUES (?)", [request.form["name"]]).lastrowid
    # After the commit: what is told is true.
    for kind in ("mail", "audit", "webhook"):
        go(tell(kind, account))
    return jsonify(id=account), 201


@app.get("/pid")
def pid():
    return str(os.getpid())
