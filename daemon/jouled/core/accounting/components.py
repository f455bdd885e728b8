"""The components of one request's energy: disjoint whole microjoules, the same in its receipt and in the counters."""

from msgspec import Struct

from jouled.core.accounting.cost import facility_factor
from jouled.model.parameters import Price


class Components(Struct, frozen=True, gc=False):
    """Microjoules, `None` where not known.

    compute: its engine's devices; host: CPU and memory; residual: the rest of the node; facility_surplus: cooling and
    distribution beyond the node, by the configured PUE.
    """

    compute_uj: int
    host_uj: int | None = None
    residual_uj: int | None = None
    facility_surplus_uj: int | None = None

    @property
    def node_uj(self) -> int:
        """What is known of the request's energy inside the node, microjoules."""
        return self.compute_uj + (self.host_uj or 0) + (self.residual_uj or 0)


def components_of(price: Price, compute_uj: int, host_uj: int | None, residual_uj: int | None) -> Components:
    """All components: the facility's surplus is in proportion to what is known inside the node."""
    if price.pue is None:
        return Components(compute_uj, host_uj, residual_uj)
    node_uj = compute_uj + (host_uj or 0) + (residual_uj or 0)
    return Components(compute_uj, host_uj, residual_uj, round(node_uj * (facility_factor(price) - 1.0)))
