"""
A Celery application whose tasks call async code: `run` for what the task's result needs, `go` for what it can leave behind.

    python ../flask_app/collector.py 8001 &
    celery --app app worker --concurrency 2
    python -c "from app import register; print(register.delay(1).get())"
"""

import os
from pathlib import Path

import aiohttp
from celery import Celery
from celery.signals import worker_process_shutdown
from celery.utils.log import get_task_logger

import omniloop

SERVICE = os.environ.get("SERVICE", "http://127.0.0.1:8001")
# A broker and a store of results that need no server; take Redis or RabbitMQ for real work.
FOLDER = Path(os.environ.get("FOLDER", "."))
for name in ("messages", "results"):
    (FOLDER / name).mkdir(exist_ok=True)

app = Celery(
    "app",
    broker="filesystem://",
    backend=(FOLDER / "results").resolve().as_uri(),
    broker_transport_options={
        "data_folder_in": str(FOLDER / "messages"),
        "data_folder_out": str(FOLDER / "messages"),
        "control_folder": str(FOLDER / "control"),
        "polling_interval": 0.05,
    },
)


# Celery ends its worker processes by os._exit, so that no exit hook of Python runs; it tells them of the end by this.
@worker_process_shutdown.connect
def drain(**_: object) -> None:
    get_task_logger(__name__).info("draining %s", omniloop.shared_runtime())
    omniloop.shutdown()


async def tell(kind: str, account: int) -> str:
    url = f"{SERVICE}/{kind}/{account}"
    async with aiohttp.ClientSession(raise_for_status=True) as client, client.post(url) as response:
        return response.reason or ""


@app.task
def register(account: int) -> str:
    for kind in ("audit", "webhook"):
        omniloop.go(tell(kind, account))
    return omniloop.run(tell("mail", account), timeout=30)
