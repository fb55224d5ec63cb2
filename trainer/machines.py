"""Which machines a run is trained on. Said at the command line alone: no page and no settings file can name an address."""

from __future__ import annotations

from dataclasses import dataclass

from security.errors import SafelightError
from security.workers import Meeting, meet_at, meet_here, split_address


@dataclass(frozen=True)
class Machines:
    """The machines of a run, `number` of `count`; `address` of the first one as HOST:PORT, as the others reach it."""

    count: int = 1
    number: int = 0
    address: str = ""

    def __post_init__(self) -> None:
        """Raises SafelightError for what makes no sense together."""
        if not 1 <= self.count <= 256 or not 0 <= self.number < self.count:
            raise SafelightError(
                f"--nodes is {self.count} and --node-rank {self.number}. Machines are counted from 0 to one less than --nodes."
            )
        if self.count > 1:
            split_address(self.address)
        elif self.address:
            raise SafelightError("--main-address needs --nodes with the number of machines, 2 or more.")

    @property
    def listens(self) -> bool:
        """Whether the others come to this machine."""
        return self.count > 1 and self.number == 0

    def meeting(self) -> Meeting:
        """Where the workers meet."""
        if self.count == 1:
            return meet_here()
        return meet_at(*split_address(self.address), listen=self.listens)


ONE_MACHINE = Machines()
