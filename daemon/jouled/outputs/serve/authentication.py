"""Whether credentials are right: users with bcrypt hashes, the token, and how often a peer may be wrong.

What was found of a pair of user and password is remembered, right or wrong: a scrape costs no bcrypt, and a client that
sends the same wrong password again and again is not taken for one that guesses, which would shut out its neighbours.
A peer that has guessed too often is refused before anything is looked up, or what is remembered could be asked for.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from http import HTTPStatus

from jouled.model.errors import ConfigurationError
from jouled.outputs.serve.answers import Refusal
from jouled.outputs.serve.limits import Guesses

_REMEMBERED = 1024
_BCRYPT_BYTES = 72
"""bcrypt reads no more of a password; what was hashed was cut there too."""


class Verdicts:
    """What was found of credentials, by a keyed hash of them; the oldest are forgotten."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._found: OrderedDict[bytes, bool] = OrderedDict()

    def get(self, given: bytes) -> bool | None:
        """None if nothing is known of them."""
        digest = self._digest(given)
        if digest in self._found:
            self._found.move_to_end(digest)
        return self._found.get(digest)

    def put(self, given: bytes, right: bool) -> None:
        """Remember."""
        self._found[self._digest(given)] = right
        if len(self._found) > _REMEMBERED:
            self._found.popitem(last=False)

    def _digest(self, given: bytes) -> bytes:
        return hmac.digest(self._key, given, hashlib.sha256)


class Passwords:
    """The users of one reading of the file, and what was found of pairs since then.

    An unknown user takes as long as a wrong password of the user with the most costly hash.
    """

    def __init__(self, users: Mapping[str, str]) -> None:
        """Of bcrypt hashes by user.

        Raises:
            ConfigurationError: the library for bcrypt is missing.
        """
        try:
            from bcrypt import checkpw
        except ImportError:
            raise ConfigurationError(
                "basic_auth_users in serve.web_config_file needs bcrypt", mend="pip install 'jouled[web]'"
            ) from None
        self._checkpw = checkpw
        self._users = {user.encode(): hashed.encode() for user, hashed in users.items()}
        # Nobody knows a password that has this hash.
        self._nobody = max(self._users.values(), key=lambda hashed: hashed[4:6])[:7] + b"." * 53
        self._one_at_a_time = asyncio.Lock()
        self.verdicts = Verdicts()

    async def check(self, pair: bytes, peer: str, guesses: Guesses) -> bool:
        """Whether `user:password` is right; in a thread, one at a time, so that guessing takes one core at most.

        Raises:
            Refusal: the peer has guessed too often while this was waiting.
        """
        async with self._one_at_a_time:
            right = self.verdicts.get(pair)
            if right is None:
                _check_guesses(peer, guesses)
                user, _, password = pair.partition(b":")
                hashed = self._users.get(user, self._nobody)
                right = await asyncio.to_thread(self._checkpw, password[:_BCRYPT_BYTES], hashed) and user in self._users
                self.verdicts.put(pair, right)
                if not right:
                    guesses.add(peer, time.monotonic())
        return right


class Authenticator:
    """Asks for credentials. `token` is empty if there is none."""

    def __init__(self, token: str) -> None:
        self.token = token
        self._guesses = Guesses()
        self._tokens = Verdicts()

    async def check(self, header: str | None, peer: str, passwords: Passwords | None, *, takes_token: bool) -> None:
        """Let pass a user with its password, or the token where it is taken; `header` is `Authorization`.

        Raises:
            Refusal: there are no credentials, or wrong ones, or there were too many wrong ones of this peer.
        """
        if header is None:
            raise _unauthorized("no_credentials", passwords, takes_token=takes_token)
        _check_guesses(peer, self._guesses)
        scheme, _, given = header.partition(" ")
        # Header values may hold any byte.
        credentials = given.strip().encode(errors="surrogateescape")
        right = False
        if scheme.lower() == "bearer" and takes_token and self.token:
            right = self._check_token(credentials, peer)
        elif scheme.lower() == "basic" and passwords is not None:
            right = await self._check_pair(credentials, peer, passwords)
        if not right:
            raise _unauthorized("wrong_credentials", passwords, takes_token=takes_token)

    def _check_token(self, given: bytes, peer: str) -> bool:
        if hmac.compare_digest(given, self.token.encode()):
            return True
        if self._tokens.get(given) is None:
            self._tokens.put(given, right=False)
            self._guesses.add(peer, time.monotonic())
        return False

    async def _check_pair(self, given: bytes, peer: str, passwords: Passwords) -> bool:
        try:
            pair = base64.b64decode(given, validate=True)
        except binascii.Error:
            return False
        if b":" not in pair:
            return False
        known = passwords.verdicts.get(pair)
        return await passwords.check(pair, peer, self._guesses) if known is None else known


def _check_guesses(peer: str, guesses: Guesses) -> None:
    seconds = math.ceil(guesses.wait_seconds(peer, time.monotonic()))
    if seconds > 0:
        raise Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"too many wrong passwords or tokens came from this address: wait {seconds} s",
            reason="too_many_guesses",
            headers={"Retry-After": str(seconds)},
        )


def _unauthorized(reason: str, passwords: Passwords | None, *, takes_token: bool) -> Refusal:
    ways = ["a user of basic_auth_users in web_config_file and its password"] if passwords else []
    if takes_token:
        ways.append("`Authorization: Bearer <token>` with the token of token_file in [serve]")
    challenge = 'Basic realm="jouled", charset="UTF-8"' if passwords else "Bearer"
    return Refusal(
        HTTPStatus.UNAUTHORIZED, f"send {', or '.join(ways)}", reason=reason, headers={"WWW-Authenticate": challenge}
    )
