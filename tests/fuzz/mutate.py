"""Changes bytes at random, from a seed: flips, cuts, copies, swaps, and the tokens that parsers stumble over."""

import random
from collections.abc import Iterator, Sequence

TOKENS = (
    b"\x00", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\xed\xa0\x80", b"NaN", b"Infinity", b"-1", b"1e999",
    b"9" * 400, b'"', b"\\u0000", b"\\ud800", b"{", b"[" * 200, b"}", b"]", b",", b"=", b"\n", b"\r\n", b"#", b"null",
    b"true", b"''", b"&a [*a]", b"!!python/object", b"\xef\xbb\xbf",
)  # fmt: skip


def mutants(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """So many changed bodies; the same for the same seed."""
    dice = random.Random(seed)
    for _ in range(count):
        body = bytearray(dice.choice(seeds))
        for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
            _change(body, dice, seeds)
        yield bytes(body)


def _change(body: bytearray, dice: random.Random, seeds: Sequence[bytes]) -> None:
    begin = dice.randrange(len(body) + 1)
    end = min(begin + dice.choice((1, 2, 8, 64, 1024)), len(body))
    match dice.randrange(7):
        case 0 if begin < len(body):
            body[begin] ^= 1 << dice.randrange(8)
        case 1:
            del body[begin:end]
        case 2:
            del body[begin:]
        case 3:
            body[begin:begin] = dice.choice(TOKENS)
        case 4:
            body[begin:end] = dice.choice(TOKENS)
        case 5:
            body[begin:begin] = body[begin:end] * dice.choice((1, 2, 50))
        case 6:
            other = dice.choice(seeds)
            place = dice.randrange(len(other) + 1)
            body[begin:end] = other[place : place + 256]
