"""Some of the samples of a split, by their numbers in it."""

from __future__ import annotations

from collections.abc import Sequence

from grasp_rl.config.errors import ConfigError
from grasp_rl.interfaces import Dataset
from grasp_rl.types import Sample


class Subset:
    """The samples ``numbers`` of ``dataset``, in that order.

    Args:
        dataset: a split.
        numbers: one or more.
        sample_ids: of these samples, where a list of them was made earlier; None where there is nothing to compare.
        source: of the numbers, for messages.
    """

    def __init__(
        self, dataset: Dataset, numbers: Sequence[int], sample_ids: Sequence[str] | None = None, source: str = ""
    ) -> None:
        self.dataset, self.numbers, self.sample_ids, self.source = dataset, list(numbers), sample_ids, source
        self.name, self.split = dataset.name, dataset.split

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        """The sample at ``index``.

        Raises:
            ConfigError: it is another one than the list names.
        """
        sample = self.dataset[self.numbers[index]]
        if self.sample_ids is not None and sample.sample_id != self.sample_ids[index]:
            raise ConfigError(
                f"{self.source}: says that sample {self.numbers[index]} of {self.name}/{self.split} is "
                f"{self.sample_ids[index]!r}, it is {sample.sample_id!r}; take the data that the list was made on, or "
                "make a new list"
            )
        return sample
