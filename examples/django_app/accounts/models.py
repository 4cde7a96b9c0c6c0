"""An account, and what the audit log knows of it."""

from django.db import models


class Account(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class AuditEntry(models.Model):
    account = models.ForeignKey(Account, on_delete=models.CASCADE)
    text = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.text
