"""The acceptance checks: the daemon's books and receipts against the twin's truth. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.acceptance.scraper import Scraped
from tests.acceptance.truth import Books
from tests.support.live import Verdicts

OWNERS = ("prefill", "decode", "resident", "unreported", "idle", "unattributed", "downtime")
LARGEST_IMBALANCE = 1e-9
LARGEST_UNATTRIBUTED = 0.01
LARGEST_UNREPORTED_ERROR = 0.01
SMALLEST_ATTRIBUTED = 0.95
LARGEST_WMAPE = 0.10
LARGEST_INCREASE_ERROR = 0.01


def imbalance_uj(book: Mapping[str, Any]) -> int:
    """Measured less owners less open of one group or the total: 0, or the books are wrong."""
    balance: int = book["measured_uj"] - book["open_uj"] - sum(book[f"{owner}_uj"] for owner in OWNERS)
    return balance


def engine_book(snapshot: Mapping[str, Any]) -> dict[str, int]:
    """The books of all measured groups with engines, added up."""
    groups = [group for group in snapshot["groups"] if group["engines"] and group["quality"] == "measured"]
    return {f"{name}_uj": sum(group[f"{name}_uj"] for group in groups) for name in ("measured", "open", *OWNERS)}


def check_conservation(verdicts: Verdicts, scraped: Scraped, snapshots: Sequence[Mapping[str, Any]]) -> None:
    """On every scrape within float precision, in every snapshot to the microjoule."""
    verdicts.passed(
        "conservation on every scrape",
        scraped.pages > 0
        and len(scraped.compute_joules) == scraped.pages
        and scraped.worst_imbalance <= LARGEST_IMBALANCE,
        scrapes=scraped.pages,
        worst_relative=scraped.worst_imbalance,
    )
    broken = [imbalance_uj(book) for snapshot in snapshots for book in (*snapshot["groups"], snapshot["total"])]
    unequal = [s for s in snapshots if s["total"]["measured_uj"] != s["boundaries_uj"]["compute"]]
    verdicts.passed(
        "conservation to the microjoule in /api/v1/snapshot",
        bool(snapshots) and not any(broken) and not unequal,
        snapshots=len(snapshots),
        broken=sum(map(bool, broken)),
        total_is_not_compute=len(unequal),
    )


def check_shares(verdicts: Verdicts, snapshot: Mapping[str, Any], start: Books, end: Books) -> None:
    """How much found its owner, by the books at the end; `end` is the truth at the books' watermark."""
    book = engine_book(snapshot)
    closed = max(book["measured_uj"] - book["open_uj"], 1)
    unattributed = book["unattributed_uj"] / closed
    verdicts.passed(
        "unattributed", unattributed <= LARGEST_UNATTRIBUTED, share=unattributed, limit=LARGEST_UNATTRIBUTED
    )
    unreported = book["unreported_uj"] / closed
    aborted = (end.aborted_uj - start.aborted_uj) / max(end.engines_uj - start.engines_uj, 1)
    verdicts.passed(
        "unreported",
        abs(unreported - aborted) <= LARGEST_UNREPORTED_ERROR,
        share=unreported,
        truth=aborted,
        limit=LARGEST_UNREPORTED_ERROR,
    )
    served = max(closed - book["idle_uj"] - book["downtime_uj"], 1)
    attributed = (book["prefill_uj"] + book["decode_uj"] + book["resident_uj"]) / served
    verdicts.passed("owned by requests", attributed >= SMALLEST_ATTRIBUTED, share=attributed, limit=SMALLEST_ATTRIBUTED)


def check_receipts(
    verdicts: Verdicts,
    receipts: Iterable[Mapping[str, Any]],
    truth: Mapping[str, Mapping[str, Any]],
    since_ns: int,
    until_ns: int,
) -> None:
    """Joules of final receipts against the truth, and that no finished request lacks one.

    Over requests that ended from `since_ns` to `until_ns`, Unix time: after the first minute, before the watermark.
    """
    finals = {receipt["id"]: receipt for receipt in receipts if not receipt["provisional"]}
    due = {
        request_id: true
        for request_id, true in truth.items()
        if true["outcome"] == "completed" and since_ns <= true["finished_ns"] < until_ns
    }
    judged = [
        (finals[request_id]["joules"], true["uj"] / 1e6) for request_id, true in due.items() if request_id in finals
    ]
    total = sum(true for _, true in judged)
    error = sum(abs(told - true) for told, true in judged) / total if total else 1.0
    bias = sum(told - true for told, true in judged) / total if total else 1.0
    verdicts.passed("wMAPE of joules", error <= LARGEST_WMAPE, wmape=error, bias=bias, requests=len(judged))
    verdicts.passed(
        "every finished request has a final receipt", len(judged) == len(due), missing=len(due) - len(judged)
    )


def check_counters(verdicts: Verdicts, scraped: Scraped) -> None:
    """No counter is ever below its predecessor."""
    verdicts.passed(
        "no counter goes back",
        scraped.pages > 0 and not scraped.drops,
        scrapes=scraped.pages,
        misses=scraped.misses,
        series=len(scraped.counters),
        drops=len(scraped.drops),
        first_drops=[f"{drop.series}: {drop.before} -> {drop.after}" for drop in scraped.drops[:5]],
    )


def check_increase(verdicts: Verdicts, scraped: Scraped, start: Books, end: Books) -> None:
    """increase() of the compute boundary over the whole run against what the GPUs truly used."""
    true_joules = (end.gpus_uj - start.gpus_uj) / 1e6
    increase = scraped.increase_joules()
    error = increase / true_joules - 1 if true_joules else 1.0
    verdicts.passed(
        "increase() over the kills",
        abs(error) <= LARGEST_INCREASE_ERROR,
        joules=increase,
        truth=true_joules,
        error=error,
    )
