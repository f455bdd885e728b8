"""From requests whose last cell has closed to their receipts."""

from collections.abc import Sequence
from dataclasses import dataclass

from jouled.core.absence import Absences
from jouled.core.accounting.account import Account
from jouled.core.accounting.components import Components, components_of
from jouled.core.accounting.receipts import Receipts
from jouled.core.attribution.group import DeviceGroup, Final
from jouled.core.attribution.host import HostBook
from jouled.core.identity import Waiting
from jouled.core.ledger.residual import ResidualBook
from jouled.core.wall_offsets import WallOffsets
from jouled.model.device import Quality
from jouled.model.receipt import Receipt


@dataclass(frozen=True, slots=True, eq=False)
class Finals:
    """Gives requests that became final what is theirs of host and node, and counts them."""

    account: Account
    host: HostBook
    residual: ResidualBook
    waiting: Waiting
    absences: Absences
    wall: WallOffsets

    def receipts(self, books: DeviceGroup, finals: Sequence[Final]) -> list[Receipt]:
        """Receipts of requests of one group that became final together, in their order."""
        quality, idle_source, parameters = books.quality, self.host.idle_source, self.account.parameters
        by_engine = {book.engine.name: Receipts(book, parameters, quality, idle_source) for book in books.engines}
        book_request, was_away = self.account.book_request, self.absences.any
        receipts = []
        for final in finals:
            request, event = final.request, final.request.event
            if was_away and self.absences.interrupted(request.work.start_ns, event.last_token_ns):
                request.flags = (*request.flags, "interrupted")
            components = self._components(final, estimated=quality is Quality.ESTIMATED)
            receipt = by_engine[event.engine].final(final, components, self.wall.at(event.last_token_ns))
            self.waiting.remove(event)
            book_request(event, receipt, components)
            receipts.append(receipt)
        return receipts

    def _components(self, final: Final, *, estimated: bool) -> Components:
        """What a final request owns of its devices, the host and the rest of the node; a guess has no residual."""
        request, compute_uj = final.request, final.prefill_uj + final.decode_uj + final.resident_uj
        host_uj, residual_uj = self.host.claim(request.event.engine, request), None
        if self.residual.is_known and not estimated:
            work = request.work
            residual_uj = self.residual.claim(compute_uj + (host_uj or 0), work.start_ns, work.last_ns)
        return components_of(self.account.parameters.price, compute_uj, host_uj, residual_uj)
