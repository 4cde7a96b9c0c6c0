"""In Flask, work on the loop has what it needs of its request, and is told what it can't have."""

import http.client
import io
import sys
import threading

import pytest

pytest.importorskip("flask")

import servers
from flask import Flask, current_app, g, request, session, url_for

import omniloop
from omniloop import go
from omniloop.ext.flask import RequestEndedError, guard


@pytest.fixture
def app() -> Flask:
    app = Flask("app")
    app.secret_key = "for tests"
    return app


def after_the_response(app: Flask, look, view=lambda: None, **post):
    """What *look* returns, or raises, in work that a view has left, when the request is over."""
    over = threading.Event()
    left = []

    async def work():
        await omniloop.to_thread(over.wait, 5)
        return look()

    @app.post("/accounts/<name>")
    def register(name):
        view()
        left.append(go(work()))
        return "answered"

    assert app.test_client().post("/accounts/ada", **post).text == "answered"
    over.set()
    return left[0].result(timeout=5)


@pytest.mark.promise(
    "In Flask, `request`, `g`, `session` and `current_app` are there in the work, also after the response"
)
def test_the_request_and_its_context_are_there_in_the_work(app):
    def view():
        g.user = "ada"
        session["visits"] = 3
        request.form.get("mail")

    def look():
        return (
            request.path,
            request.view_args,
            request.headers["X-Request-Id"],
            request.form["mail"],
            g.user,
            session["visits"],
            current_app.name,
            url_for("register", name="grace", _external=True),
        )

    guard(app)

    assert after_the_response(app, look, view, data={"mail": "ada@example.org"}, headers={"X-Request-Id": "7"}) == (
        "/accounts/ada",
        {"name": "ada"},
        "7",
        "ada@example.org",
        "ada",
        3,
        "app",
        "http://localhost/accounts/grace",
    )


@pytest.mark.promise("With `guard`, a body that the view has not read is refused with what to do")
@pytest.mark.parametrize("look", [lambda: request.form["mail"], lambda: request.get_data(), lambda: request.get_json()])
def test_a_body_that_the_view_has_not_read_is_refused_with_what_to_do(app, look):
    guard(app)
    posted = {"json": {"mail": 1}} if look.__code__.co_names[-1] == "get_json" else {"data": {"mail": "1"}}

    with pytest.raises(RequestEndedError, match=r"body that was not read is gone.*go\(work\(request.get_data\(\)\)\)"):
        after_the_response(app, look, **posted)


@pytest.mark.promise("So is an uploaded file")
def test_an_uploaded_file_is_refused_with_what_to_do(app):
    guard(app)

    with pytest.raises(RequestEndedError, match="uploaded file that was not read is gone. Read it in the view"):
        after_the_response(
            app,
            lambda: request.files["picture"].read(),
            lambda: request.files["picture"].filename,
            data={"picture": (io.BytesIO(b"..."), "ada.png")},
        )


@pytest.mark.promise("So is a change of the session")
def test_a_change_of_the_session_is_refused_with_what_to_do(app):
    guard(app)

    with pytest.raises(RequestEndedError, match="this change is lost. Write it in the view"):
        after_the_response(app, lambda: session.update(visits=4))


@pytest.mark.promise("Work may open an application context of its own, and closes what it opened in it")
def test_work_may_open_an_application_context_of_its_own(app):
    closed = []
    app.teardown_appcontext(lambda error: closed.append(g.pop("connection", None)))

    def look():
        with app.app_context():
            assert "connection" not in g
            g.connection = "the work's own"
        return closed

    def view():
        g.connection = "the view's"

    assert after_the_response(app, look, view) == ["the view's", "the work's own"]


@pytest.mark.promise("Work of requests at the same time is kept apart")
def test_work_of_requests_at_the_same_time_is_kept_apart(app):
    together = threading.Barrier(4, timeout=5)

    async def work():
        await omniloop.to_thread(together.wait)
        return request.args["name"], g.name

    left = {}

    @app.get("/")
    def view():
        g.name = request.args["name"]
        left[g.name] = go(work())
        return ""

    threads = [threading.Thread(target=app.test_client().get, args=[f"/?name={n}"]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {name: task.result(timeout=5) for name, task in left.items()} == {str(n): (str(n), str(n)) for n in range(4)}


# A server in an interpreter of its own, on a machine that may be busy.
@pytest.mark.promise("Under a real server too, where all three would be lost without a word")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("guarded", ["yes", "no"])
def test_under_a_real_server_the_guard_tells_of_what_would_be_lost_without_a_word(tmp_path, guarded):
    """Without it, the form of a connection that is kept was empty in 2 of 2 runs: nobody was told."""
    pytest.importorskip("gunicorn")
    port = servers.free_port()
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--no-control-socket", "--threads=2"]
    env = {"GUARD": guarded, "PYTHONPATH": servers.import_path(servers.HERE / "apps")}
    with servers.process([*command, "reads_late:app"], tmp_path / "gunicorn.log", tmp_path, env) as server:
        server.wait_for_page(f"http://127.0.0.1:{port}/pid")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=servers.PATIENCE)
        connection.request("POST", "/leave", "name=ada", {"Content-Type": "application/x-www-form-urlencoded"})
        assert connection.getresponse().read() == b"left"
        # The answer comes before the server is through with the request; that of the next one on the connection comes after.
        connection.request("GET", "/pid")
        connection.getresponse().read()

        found = servers.get(f"http://127.0.0.1:{port}/found")
        connection.close()

    if guarded == "yes":
        assert found.startswith("RequestEndedError: The request is over, and the body that was not read is gone.")
    else:
        assert found == "form: None"
