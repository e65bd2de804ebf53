"""Kind `launcher`: one run in several processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class Launcher(ABC):
    """Starts the processes of a run, here or on other machines."""

    @abstractmethod
    def launch(self, arguments: Sequence[str], processes: int) -> int:
        """Run `peg` with the same arguments in so many processes, and return the exit status: 0 where all of them ended well.

        Each finds its number and the others by torch's environment variables: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR
        and MASTER_PORT. A signal to stop goes to all; when one process fails, the others are ended. What is told to people is told once.
        """
