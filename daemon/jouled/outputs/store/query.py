"""Which receipts somebody asks for, as data and as SQL."""

from msgspec import Struct

_RESPONSE_PREFIXES = ("chatcmpl-", "cmpl-")
_NUMBERED_PREFIX = "cmpl-"


class ReceiptQuery(Struct, frozen=True, kw_only=True):
    """A filter over final receipts; an empty field does not filter.

    id: a response id, or the bare X-Request-Id that the client sent. since_ns, until_ns: Unix nanoseconds of the last
    token, from (inclusive) and to (exclusive). The answer is newest first; `offset` skips, `limit` bounds.
    """

    id: str = ""
    engine: str = ""
    model: str = ""
    tenant: str = ""
    outcome: str = ""
    since_ns: int | None = None
    until_ns: int | None = None
    limit: int = 100
    offset: int = 0


def sql(query: ReceiptQuery) -> tuple[str, list[str | int]]:
    """The statement and its parameters."""
    conditions: list[str] = []
    parameters: list[str | int] = []
    if query.id:
        condition, values = _names(query.id)
        conditions.append(condition)
        parameters += values
    for column in ("engine", "model", "tenant", "outcome"):
        if value := getattr(query, column):
            conditions.append(f"{column} = ?")
            parameters.append(value)
    if query.since_ns is not None:
        conditions.append("last_token_ns >= ?")
        parameters.append(query.since_ns)
    if query.until_ns is not None:
        conditions.append("last_token_ns < ?")
        parameters.append(query.until_ns)
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    order = "ORDER BY last_token_ns DESC, number DESC LIMIT ? OFFSET ?"
    return f"SELECT receipt FROM receipts {where}{order}", [*parameters, query.limit, query.offset]  # noqa: S608 - only the fixed words above are joined


def _names(asked: str) -> tuple[str, list[str | int]]:
    """Every id under which an engine may have told of the request that the client knows as `asked`.

    vLLM answers with `chatcmpl-<X-Request-Id>` or `cmpl-<X-Request-Id>`; for completions its own id has `-<number of
    the prompt>` behind it.
    """
    exact = [asked, *(prefix + asked for prefix in _RESPONSE_PREFIXES)]
    conditions = [f"id IN ({', '.join('?' * len(exact))})"]
    values: list[str | int] = [*exact]
    for name in (asked, _NUMBERED_PREFIX + asked):
        if name.startswith(_NUMBERED_PREFIX):
            # '.' follows '-' in ASCII: the range holds exactly the ids that begin with the name and '-'.
            conditions.append("(id > ? AND id < ? AND substr(id, ?) NOT GLOB '*[^0-9]*')")
            values += [f"{name}-", f"{name}.", len(name) + 2]
    return f"({' OR '.join(conditions)})", values
