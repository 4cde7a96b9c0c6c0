"""Servers that the tests of one process share; each is started when the first test asks for it."""

import pytest
import services


def _shared(kind: str):
    @pytest.fixture(scope="session", name=kind)
    def service(tmp_path_factory: pytest.TempPathFactory):
        with services.KINDS[kind](tmp_path_factory.mktemp(kind)) as running:
            yield running

    return service


rabbitmq = _shared("rabbitmq")
nats = _shared("nats")
postgres = _shared("postgres")
redis = _shared("redis")
