"""Wrong routes, methods and content types, and requests from pages of other sites."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from dpo_train import sample
from serve import api, meters, models, ui
from serve.instruments import LocalInstruments
from serve.models import ServedModel

URL, LOCAL = "http://127.0.0.1", ("127.0.0.1", 1)
CHATS = "/v1/chat/completions"
PAGE = "https://page.example"


@pytest.fixture(scope="module")
def loaded() -> Iterator[dict[str, ServedModel]]:
    loaded = models.load([f"winner={sample.MODEL}"], slots=2, context=128, max_waiting=4)
    yield loaded
    loaded["winner"].engine.close()


@pytest.fixture(params=["with the page", "without it"])
def client(loaded: dict[str, ServedModel], request: pytest.FixtureRequest) -> Iterator[TestClient]:
    app = api.create_app(loaded, None)
    if request.param == "with the page":
        ui.mount(app, list(loaded), "", [])
    meters.mount(app, loaded, LocalInstruments())
    with TestClient(app, URL, client=LOCAL, follow_redirects=False) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/none", 404),
        ("POST", "/none", 404),
        ("GET", CHATS, 405),
        ("DELETE", "/v1/models/winner", 405),
        ("POST", "/healthz", 405),
        ("OPTIONS", CHATS, 405),
    ],
)
def test_unknown_routes_and_methods_are_errors_in_openais_form(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/winner", "/healthz", "/metrics"])
def test_head_is_answered_as_get_is_and_a_slash_at_the_end_changes_nothing(
    client: TestClient, path: str
) -> None:
    assert client.head(path).status_code == 200
    assert client.head(CHATS).status_code == 405
    assert client.get(f"{path}/").status_code == 200
    route = path.replace("winner", "{name:path}")
    assert f'path="{route}",status="200"' in client.get("/metrics").text


def test_under_a_route_prefix_the_page_and_its_files_are_found(
    loaded: dict[str, ServedModel],
) -> None:
    app = api.create_app(loaded, "a key")
    ui.mount(app, list(loaded), "", [])
    key = {"authorization": "Bearer a key"}
    # Ray's proxy leaves the prefix in the path and names it in root_path.
    with TestClient(app, URL, root_path="/models/one", follow_redirects=False) as client:
        assert client.get("/models/one/healthz").status_code == 200  # this path needs no key
        assert "<title>" in client.get("/models/one/", headers=key).text
        for path in ("page/page.js", "v1/models", "v1/models/"):
            assert client.get(f"/models/one/{path}", headers=key).status_code == 200
        # The page names its files relative to the prefix with its slash.
        assert client.get("/models/one", headers=key).headers["location"] == "/models/one/"


def test_a_post_to_a_path_with_a_slash_is_answered(client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert client.post(f"{CHATS}/", json=body).status_code == 200


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (None, "the content type is missing; send application/json"),
        ("text/plain", "the content type is text/plain; send application/json"),
        ("application/x-www-form-urlencoded", "the content type is application/x-www-form-url"),
    ],
)
def test_a_content_type_that_is_not_json_is_said(
    client: TestClient, kind: str | None, message: str
) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = client.post("/generate", content=b'{"prompt": "Hi"}', headers=headers)
    assert answer.status_code == 415
    assert message in answer.json()["error"]["message"]
    for json_type in ("application/json; charset=utf-8", "application/vnd.api+json"):
        body = b'{"prompt": "Hi", "max_tokens": 2}'
        answer = client.post("/generate", content=body, headers={"content-type": json_type})
        assert answer.status_code == 200


def test_pages_of_other_origins_may_ask_only_where_that_was_allowed(
    client: TestClient, loaded: dict[str, ServedModel]
) -> None:
    preflight = {"origin": PAGE, "access-control-request-method": "POST",
                 "access-control-request-headers": "authorization"}  # fmt: skip
    assert client.options(CHATS, headers=preflight).status_code == 403
    assert client.get("/v1/models", headers={"origin": PAGE}).status_code == 403
    for origins in ((PAGE,), ("*",)):
        app = api.create_app(loaded, "a key", allowed_origins=origins)
        with TestClient(app, URL, client=("203.0.113.9", 1)) as far:
            allowed = far.options(CHATS, headers=preflight)
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] in (PAGE, "*")
            key = {"origin": PAGE, "authorization": "Bearer a key", "sec-fetch-site": "cross-site"}
            answer = far.get("/v1/models", headers=key)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] in (PAGE, "*")
            refused = far.get("/v1/models", headers={"origin": PAGE})
            assert refused.status_code == 401
            assert "access-control-allow-origin" in refused.headers  # the page can read the error
            if origins == (PAGE,):
                other = {**key, "origin": "https://other.example"}
                assert far.get("/v1/models", headers=other).status_code == 403


def test_other_sites_may_link_to_the_page_and_not_frame_it(
    loaded: dict[str, ServedModel],
) -> None:
    app = api.create_app(loaded, None)
    ui.mount(app, list(loaded), "", [])
    cross = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    with TestClient(app, URL, client=LOCAL) as client:
        assert client.get("/", headers={**cross, "sec-fetch-dest": "document"}).status_code == 200
        framed = client.get("/", headers={**cross, "sec-fetch-dest": "iframe"})
        assert framed.status_code == 403
        assert client.get("/").headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name", ["127.0.0.2", "[::1]", "localhost", "LOCALHOST.", "[::ffff:7f00:1]"]
)
def test_each_spelling_of_this_machine_is_answered_without_a_key(
    loaded: dict[str, ServedModel], name: str
) -> None:
    app = api.create_app(loaded, None)
    with TestClient(app, URL, client=LOCAL) as client:
        assert client.get("/v1/models", headers={"host": f"{name}:8000"}).status_code == 200
        assert client.get("/v1/models", headers={"host": name}).status_code == 200
        assert client.get("/v1/models", headers={"host": f"{name}.example"}).status_code == 403
