"""One sync view, and the async work that it leaves behind."""

import os

import aiohttp
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from omniloop.ext.django import go_on_commit

from .models import Account, AuditEntry

SERVICE = os.environ.get("SERVICE", "http://127.0.0.1:8001")


async def tell(kind: str, account: int) -> None:
    """Tell the service beside us, as a mailer or a webhook does."""
    url = f"{SERVICE}/{kind}/{account}"
    async with aiohttp.ClientSession(raise_for_status=True) as client, client.post(url):
        pass


async def audit(pk: int) -> None:
    """Django's own async ORM, on the loop: the account is there, because the transaction is committed."""
    account = await Account.objects.aget(pk=pk)
    await AuditEntry.objects.acreate(account=account, text=f"{account.name} has registered")
    await tell("audit", pk)


@csrf_exempt
@transaction.atomic
def register(request: HttpRequest) -> HttpResponse:
    account = Account.objects.create(name=request.POST["name"])
    go_on_commit(tell("mail", account.pk))
    go_on_commit(tell("webhook", account.pk))
    go_on_commit(audit(account.pk))
    if request.POST["name"] == "rolled back":
        transaction.set_rollback(True)
        return JsonResponse({"id": account.pk}, status=409)
    return JsonResponse({"id": account.pk}, status=201)


def pid(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(os.getpid()))


urlpatterns = [path("accounts", register), path("pid", pid)]
