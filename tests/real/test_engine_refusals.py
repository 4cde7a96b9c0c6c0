"""What real brokers refuse, found out and told to the caller, while all other calls are taken, each once."""

import logging
import uuid

import pytest

pytest.importorskip("taskiq")

import services
from taskiq import TaskiqMiddleware

import omniloop
from omniloop import RefusedError, background
from omniloop.ext.taskiq import Taskiq

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]

# nats-py logs what is refused, over and over.
logging.getLogger("nats").setLevel(logging.CRITICAL)

LONG = 60


class Queue:
    """A queue of its own on one broker: how it is made, and how many calls it holds."""

    def __init__(self, kind, url, declare=True, **options):
        self.kind, self.url, self.declare, self.options = kind, url, declare, options
        self.name = f"q{uuid.uuid4().hex[:8]}"
        self.middlewares = []
        self.jobs = Taskiq(self.make, lossy=True)

    def make(self):
        if self.kind == "rabbitmq":
            from taskiq_aio_pika import AioPikaBroker
            from taskiq_aio_pika.exchange import Exchange
            from taskiq_aio_pika.queue import Queue as Of

            broker = AioPikaBroker(self.url, exchange=Exchange(name=self.name), **self.options)
            broker = broker.with_queue(Of(name=self.name, declare=self.declare))
        elif self.kind == "nats":
            from taskiq_nats import PullBasedJetStreamBroker

            names = {"subject": self.name, "stream_name": self.name, "durable": self.name, **self.options}
            broker = PullBasedJetStreamBroker(self.url, **names)
        else:
            from taskiq_redis import ListQueueBroker

            broker = ListQueueBroker(self.url, queue_name=self.name, **self.options)
        broker.add_middlewares(*self.middlewares)
        return broker

    def function(self, **labels):
        @background(broker=self.jobs.with_labels(**labels), name=f"work{len(labels)}")
        async def work(text: str) -> None: ...

        return work

    async def _on(self, ask):
        line = await self.jobs._line
        return await ask((await line.open()).broker)

    def on_the_broker(self, ask):
        """What the coroutine function *ask* answers, on the loop, with the broker that calls are sent on."""
        return omniloop.run(self._on(ask), timeout=LONG)

    def holds(self):
        async def ask(broker):
            if self.kind == "rabbitmq":
                queue = await broker.write_channel.declare_queue(self.name, passive=True)
                return queue.declaration_result.message_count
            if self.kind == "nats":
                return (await broker.js.stream_info(self.name)).state.messages
            return await _redis(broker, "LLEN", self.name)

        return self.on_the_broker(ask)

    def drop(self):
        """What an administrator does by mistake."""

        async def ask(broker):
            if self.kind == "rabbitmq":
                await broker.write_channel.queue_delete(self.name)
            else:
                await broker.js.delete_stream(self.name)

        self.on_the_broker(ask)


async def _redis(broker, *command):
    from redis.asyncio import Redis

    async with Redis(connection_pool=broker.connection_pool) as client:
        try:
            return await client.execute_command(*command)
        except AttributeError:
            # asyncio's `writelines` on a connection that the server has just closed, on 3.12. The next one is another.
            return await client.execute_command(*command)


@pytest.fixture(params=["rabbitmq", "nats", "redis"])
def queue(request):
    return Queue(request.param, request.getfixturevalue(request.param).url)


@pytest.mark.promise(
    "A message over the server's limit fails at its caller, and all others are taken, each once, with RabbitMQ, NATS and Redis",
    section="Beyond the process",
)
def test_a_message_over_the_limit_fails_at_its_caller_and_the_others_are_taken(queue):
    work = queue.function()
    if queue.kind == "redis":
        queue.on_the_broker(lambda broker: _redis(broker, "CONFIG", "SET", "proto-max-bulk-len", 1048576))
    work("first").accepted.result(LONG)

    large, others = [], []
    for number in range(200):
        if number % 12 == 0:
            large.append(work("x" * 1_200_000))
        others.append(work(str(number)))
    for call in others:
        call.accepted.result(LONG)
    for call in large:
        with pytest.raises(RefusedError, match="refuses the call of work0: "):
            call.accepted.result(LONG)

    # On RabbitMQ such a message closes the channel under those that are on it, whose answers are lost: at least once, and only once,
    # because its words tell the limit.
    assert 0 <= queue.holds() - 201 <= (15 if queue.kind == "rabbitmq" else 0)


@pytest.mark.promise("A queue or stream that was deleted is made anew, and no call is lost in between")
@pytest.mark.parametrize("kind", ["rabbitmq", "nats"])
def test_a_queue_that_was_deleted_is_made_anew(kind, request):
    queue = Queue(kind, request.getfixturevalue(kind).url)
    work = queue.function()
    work("first").accepted.result(LONG)

    queue.drop()
    calls = [work(str(number)) for number in range(50)]
    for call in calls:
        call.accepted.result(LONG)

    assert queue.holds() == 50


@pytest.mark.promise("A call for a queue or subject that does not exist fails at its caller")
def test_a_call_for_a_queue_that_does_not_exist_fails_at_its_caller(rabbitmq, nats):
    undeclared = Queue("rabbitmq", rabbitmq.url, declare=False)
    taken = Queue("nats", nats.url)
    taken.function()("first").accepted.result(LONG)
    from nats.js.api import StreamConfig

    # The stream is there, and has another subject; so it stays, and its consumer can't be made.
    other = Queue(
        "nats", nats.url, stream_name=taken.name, stream_config=StreamConfig(subjects=[f"{taken.name}.other"])
    )

    calls = [queue.function()(str(number)) for queue in (undeclared, other) for number in range(3)]

    for call in calls:
        with pytest.raises(RefusedError, match=r"refuses the call of work0: (QueueNotDeclared|NotFound)"):
            call.accepted.result(LONG)


@pytest.mark.promise("A `delay` on RabbitMQ without a delay queue fails at its caller")
def test_a_delay_without_a_delay_queue_fails_at_its_caller(rabbitmq):
    queue = Queue("rabbitmq", rabbitmq.url)
    delayed, plain = queue.function(delay=60), queue.function()

    bad = [delayed(str(number)) for number in range(30)]
    good = [plain(str(number)) for number in range(30)]

    for call in bad:
        with pytest.raises(RefusedError, match="Delay requested but no delay queue"):
            call.accepted.result(LONG)
    for call in good:
        call.accepted.result(LONG)
    assert queue.holds() == 30


@pytest.mark.promise("A call that a server's access rules refuse fails at its caller, with RabbitMQ, NATS and Redis")
@pytest.mark.parametrize("kind", ["rabbitmq", "redis", "nats", "nats: publish"])
def test_a_call_without_access_fails_at_its_caller(kind, request, tmp_path):
    config = """authorization { users = [
        {user: reader, password: reader, permissions: {publish: {deny: ["denied.>"]}}}, {user: writer, password: writer}] }"""
    if kind == "rabbitmq":
        queue = Queue(kind, request.getfixturevalue(kind).url.replace("guest:guest", "guest:wrong"))
    elif kind == "redis":
        url = request.getfixturevalue(kind).url
        admin = Queue(kind, url)
        admin.on_the_broker(lambda broker: _redis(broker, "ACL", "SETUSER", "reader", "on", ">reader", "~*", "+@read"))
        queue = Queue(kind, url.replace("redis://", "redis://reader:reader@"))
    with services.nats(tmp_path, config) if kind.startswith("nats") else omniloop.TaskGroup() as service:
        if kind.startswith("nats"):
            user = "reader:reader" if "publish" in kind else "writer:wrong"
            queue = Queue("nats", service.url.replace("nats://", f"nats://{user}@"), subject="denied.work")
        work = queue.function()
        calls = [work(str(number)) for number in range(40)]

        for call in calls:
            with pytest.raises(RefusedError, match=r"(?i)access_refused|no permissions|violation"):
                call.accepted.result(LONG)


@pytest.mark.promise(
    "A call for a virtual host of RabbitMQ that does not exist fails at its caller, in the server's words"
)
def test_a_call_for_a_virtual_host_that_does_not_exist_fails_at_its_caller(rabbitmq):
    work = Queue("rabbitmq", f"{rabbitmq.url}nowhere").function()

    for call in [work(str(number)) for number in range(40)]:
        with pytest.raises(RefusedError, match="vhost nowhere not found. Mend what the broker is made with"):
            call.accepted.result(LONG)


@pytest.mark.promise("A call for a PostgreSQL that lets nobody in fails at its caller, in the server's words")
def test_a_call_for_a_postgresql_that_lets_nobody_in_fails_at_its_caller(tmp_path):
    psycopg, procrastinate = pytest.importorskip("psycopg"), pytest.importorskip("procrastinate")
    from omniloop.ext.procrastinate import Procrastinate

    with services.postgres(tmp_path) as service:
        with psycopg.connect(service.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE ada LOGIN PASSWORD 'right'")
            (rules,) = connection.execute("SHOW hba_file").fetchone()
            with open(rules, "w") as file:
                file.write("host all ada 127.0.0.1/32 scram-sha-256\nhost postgres postgres 127.0.0.1/32 trust\n")
            connection.execute("SELECT pg_reload_conf()")
        wrong = {
            service.url.replace("postgres@", "ada:wrong@"): 'password authentication failed for user "ada"',
            service.url.replace("postgres@", "ada@"): "no password supplied",
            service.url.replace("postgres@", "nobody@"): "no pg_hba.conf entry",
            service.url.replace("postgres@", "ada:right@").replace(
                "/postgres", "/nowhere"
            ): 'database "nowhere" does not exist',
            f"{service.url}?sslmode=require": "server does not support SSL",
        }

        for url, words in wrong.items():
            jobs = Procrastinate(
                lambda url=url: procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
            )

            @background(broker=jobs, name="work")
            async def work(number: int) -> None: ...

            for call in [work(number) for number in range(40)]:
                with pytest.raises(RefusedError, match=f"(?s){words}.*Mend the address"):
                    call.accepted.result(LONG)


@pytest.mark.promise("An error of the serialiser on the way ends the call as refused, and no other")
def test_an_error_of_the_serialiser_on_the_way_ends_the_call(nats):
    class Adds(TaskiqMiddleware):
        def pre_send(self, message):
            if message.args == ["bad"]:
                message.args = [object()]
            return message

    queue = Queue("nats", nats.url)
    queue.middlewares = [Adds()]
    work = queue.function()

    bad = [work("bad") for _ in range(16)]
    good = [work(str(number)) for number in range(50)]

    for call in good:
        call.accepted.result(LONG)
    for call in bad:
        with pytest.raises(RefusedError, match="in 5 tries"):
            call.accepted.result(LONG)
    assert queue.holds() == 50


@pytest.mark.promise("A file whose calls were packed for another engine is told so, and they are not tried for ever")
def test_a_file_that_changes_its_engine_is_told(nats, tmp_path):
    queue = Queue("nats", nats.url)
    function = queue.function

    async def send(parcel):
        bound, *_ = next(iter(queue.jobs._functions.values()))
        await queue.jobs.send(bound, parcel)

    function()
    for parcel in ([["a"], {}], {"call_id": "a", "args": [], "kwargs": {}}, None, "text"):
        with pytest.raises(RefusedError, match="was packed for another engine than PullBasedJetStreamBroker"):
            omniloop.run(send(parcel), timeout=LONG)
