import asyncio
import base64
import threading

import bcrypt
import pytest

from jouled.outputs.serve import access, authentication
from jouled.outputs.serve.access import Caller

PATH = "/api/v1/requests"
OPEN = ("/metrics", "/healthz", "/readyz")


def hashed(password, cost=4):
    return bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(cost)).decode()


def users(**passwords):
    return "basic_auth_users: {" + ", ".join(f"{user}: {hashed(word)}" for user, word in passwords.items()) + "}"


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


ANN = basic("ann", "right")


@pytest.fixture
def checks(monkeypatch):
    """Every comparison that bcrypt makes: password, hash, and whether in the thread of the loop."""
    made = []
    compare = bcrypt.checkpw

    def checkpw(password, against):
        made.append((password, against, threading.current_thread() is threading.main_thread()))
        return compare(password, against)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    return made


async def test_every_path_asks_for_a_password_from_loopback_too(serve, web_file):
    served = await serve(web_file(users(ann="right")))
    for path in (*OPEN, "/", "/api/v1/snapshot", "/nothing"):
        async with served.session.get(served.url(path)) as answer:
            assert (answer.status, answer.headers["WWW-Authenticate"][:5]) == (401, "Basic")
        await served.get(path, status=404 if path == "/nothing" else 200, headers=ANN)
    await served.post(PATH, b"a", status=401)
    await served.post(PATH, b"b", **ANN)
    assert served.taken == ["b"]


async def test_the_unix_socket_asks_for_none(serve, web_file):
    served = await serve(web_file(users(ann="right")))
    await served.post(PATH, b"a", unix=True)
    assert (await served.post(access.RELEASE_PATH, b'{"seconds": 1}', unix=True))["released"] == ["nvml"]
    await served.post(access.RELEASE_PATH, b'{"seconds": 1}', status=403, **ANN)


@pytest.mark.parametrize(
    "given",
    [
        basic("ann", "wrong"), basic("ann", ""), basic("bob", "right"), basic("", ""), {"Authorization": "Basic"},
        {"Authorization": "Basic !!"}, {"Authorization": "Basic YW5u"}, {"Authorization": "\xff"},
        {"Authorization": "Bearer right"}, {"Authorization": f"Digest {ANN['Authorization'][6:]}"},
    ],
)  # fmt: skip
async def test_wrong_credentials_are_refused_and_counted(serve, web_file, given):
    served = await serve(web_file(users(ann="right")))
    answer = await served.get("/metrics", status=401, headers=given)
    assert "right" not in str(answer)
    assert served.refused == {"wrong_credentials": 1}


async def test_other_hosts_with_a_password_may_do_everything_under_any_name(serve, web_file, monkeypatch):
    monkeypatch.setattr(access, "caller_of", lambda _: Caller.ELSEWHERE)
    served = await serve(web_file(users(ann="right")))
    await served.get("/api/v1/snapshot", headers=ANN | {"Host": "node17:9966"})
    await served.post(PATH, b"a", **ANN)
    await served.post(PATH, b"b", status=403, Origin="http://evil.example", **ANN)
    assert served.taken == ["a"]
    assert served.refused == {"foreign_origin": 1}


async def test_the_token_stands_for_a_password_but_not_for_a_scrape(serve, web_file):
    served = await serve(web_file(users(ann="right")), token="s3cret")
    bearer = {"Authorization": "Bearer s3cret"}
    await served.post(PATH, b"a", **bearer)
    await served.get("/api/v1/snapshot", headers=bearer)
    await served.get("/metrics", status=401, headers=bearer)
    await served.post(PATH, b"b", **ANN)
    assert "token_file" in (await served.post(PATH, b"c", status=401))["error"]
    assert served.taken == ["a", "b"]


async def test_a_scrape_costs_one_bcrypt_in_all_and_never_the_loop(serve, web_file, checks):
    served = await serve(web_file(users(ann="right")))
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(served.get("/metrics", headers=ANN))
    await served.get("/metrics", headers=ANN)
    assert [in_loop for *_, in_loop in checks] == [False]


async def test_a_wrong_pair_that_is_sent_again_and_again_costs_one_bcrypt_and_shuts_out_nobody(serve, web_file, checks):
    served = await serve(web_file(users(ann="right")))
    for _ in range(30):
        await served.get("/metrics", status=401, headers=basic("ann", "old"))
    await served.get("/metrics", headers=ANN)
    assert len(checks) == 2


async def test_an_unknown_user_costs_what_the_most_costly_user_does(serve, web_file, checks):
    served = await serve(
        web_file(f"basic_auth_users: {{ann: {hashed('a', 5)}, bob: {hashed('b').replace('2b', '2y')}}}")
    )
    await served.get("/metrics", status=401, headers=basic("eve", "x"))
    [(password, against, _)] = checks
    assert (password, against[4:6], len(against)) == (b"x", b"05", 60)


async def test_what_was_found_is_forgotten_with_the_file(serve, web_file, checks):
    served = await serve(web_file(users(ann="right")))
    await served.get("/metrics", headers=ANN)
    web_file(users(ann="new", bob="right"))
    await served.get("/metrics", status=401, headers=ANN)
    await served.get("/metrics", headers=basic("ann", "new"))
    await served.get("/metrics", headers=basic("bob", "right"))
    assert len(checks) == 4


async def test_a_password_that_is_right_only_while_the_file_changes_is_not_remembered(serve, web_file, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    compare = bcrypt.checkpw

    def slow(password, against):
        begun.set()
        go_on.wait(10)
        return compare(password, against)

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    served = await serve(web_file(users(ann="right")))
    async with asyncio.TaskGroup() as group:
        before = group.create_task(served.get("/metrics", headers=ANN))
        await asyncio.to_thread(begun.wait, 10)
        monkeypatch.setattr(bcrypt, "checkpw", compare)
        web_file(users(ann="new"))
        await served.get("/metrics", status=401)
        go_on.set()
    assert "jouled_build_info" in before.result()
    await served.get("/metrics", status=401, headers=ANN)


async def test_who_guesses_waits_even_for_the_right_password(serve, web_file, checks):
    served = await serve(web_file(users(ann="right")))
    await served.get("/metrics", headers=ANN)
    for n in range(10):
        await served.get("/metrics", status=401, headers=basic("ann", f"guess{n}"))
    for given in (basic("ann", "more"), basic("ann", "guess1"), ANN):
        async with served.session.get(served.url("/metrics"), headers=given) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "6")
    assert len(checks) == 11
    assert served.refused == {"wrong_credentials": 10, "too_many_guesses": 3}


async def test_guesses_that_wait_in_line_are_judged_when_their_turn_comes(serve, web_file, checks):
    served = await serve(web_file(users(ann="right")))

    async def guess(n):
        async with served.session.get(served.url("/metrics"), headers=basic("ann", f"guess{n}")) as answer:
            return answer.status

    statuses = await asyncio.gather(*(guess(n) for n in range(40)))
    assert (statuses.count(401), statuses.count(429), len(checks)) == (10, 30, 10)


async def test_guesses_are_forgiven_with_time_and_count_by_address(serve, web_file, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(authentication.time, "monotonic", lambda: now)
    served = await serve(web_file(users(ann="right")))
    for n in range(10):
        await served.get("/metrics", status=401, headers=basic("ann", f"guess{n}"))
    await served.get("/metrics", status=429, headers=ANN)
    monkeypatch.setattr(access, "_host_of_peer", lambda _: "192.0.2.1")
    await served.get("/metrics", headers=ANN)
    monkeypatch.undo()
    monkeypatch.setattr(authentication.time, "monotonic", lambda: now + 7)
    await served.get("/metrics", headers=ANN)


async def test_tokens_are_guessed_no_faster(serve):
    served = await serve(token="s3cret")
    for _ in range(30):
        await served.post(PATH, b"a", status=401, Authorization="Bearer old")
    for n in range(9):
        await served.post(PATH, b"a", status=401, Authorization=f"Bearer guess{n}")
    await served.post(PATH, b"a", status=429, Authorization="Bearer s3cret")
    assert served.taken == []


async def test_long_passwords_are_cut_where_bcrypt_cuts_them(serve, web_file):
    served = await serve(web_file(users(ann="x" * 80)))
    await served.get("/metrics", headers=basic("ann", "x" * 80))
    await served.get("/metrics", status=401, headers=basic("ann", "x" * 71))


async def test_a_password_may_hold_colons_and_any_letter(serve, web_file):
    served = await serve(web_file(users(ann="a:ü:")))
    await served.get("/metrics", headers=basic("ann", "a:ü:"))


def test_what_is_remembered_is_bounded_and_no_password():
    verdicts = authentication.Verdicts()
    verdicts.put(b"ann:right", right=True)
    for n in range(authentication._REMEMBERED - 1):
        verdicts.put(str(n).encode(), right=False)
    assert verdicts.get(b"ann:right") is True
    verdicts.put(b"one more", right=False)
    assert verdicts.get(b"ann:right") is True  # it was asked for last
    assert verdicts.get(b"0") is None
    assert len(verdicts._found) == authentication._REMEMBERED
    assert not any(b"ann" in key for key in verdicts._found)
