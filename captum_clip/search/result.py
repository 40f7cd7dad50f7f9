"""What a search of an index finds: files, scores and maps, as a table and a figure."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from ..evaluation.units import to_csv
from ..explaining.explanation import Explanation
from ..files import make_folder, replace_file
from ..visualization import HEAT, NEGATIVE, save_figure
from ..visualization.colors import blend, blend_signed, colormap, score_note
from ..visualization.grid import Panel, Row, grid
from ..visualization.strips import strip_legends

TABLE, FIGURE = "search.csv", "search.png"
_WIDTH: Final = 6  # panels in a row of the figure


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult:
    """The images of an index that fit best, best first.

    Attributes:
        files: the N best, relative to the folder of the index.
        scores: what they are ordered by (N,), the cosine, or the weighted mean of several.
        explanation: their maps for the K targets; its `scores` are the cosines (N, K).
        compared: how many images the index holds.
        skipped: those among the best that are gone or cannot be read: file -> why.
    """

    files: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    explanation: Explanation
    compared: int
    skipped: dict[str, str]

    def panels(self) -> Iterator[list[Panel]]:
        """Each image with its rank, name and score, then its map for each target; best first."""
        explanation, has_one_target = self.explanation, len(self.explanation.names) == 1
        heatmaps = [maps.numpy() for maps in explanation.heatmap("bicubic").values()]
        colors = colormap(HEAT if "positive" in explanation.maps else NEGATIVE)
        cosines = explanation.scores.tolist()
        for index, (file, score) in enumerate(zip(self.files, self.scores.tolist(), strict=True)):
            image, note = explanation.images[index].movedim(0, -1).numpy(), score_note(score)
            if not has_one_target:  # a mean of several cosines is a cosine of none
                note = note.replace("cosine", "score")
            panels = [Panel(image, f"{index + 1}. {file.rpartition('/')[2]}", note)]
            for column, title in enumerate(explanation.names):
                first, *second = (maps[index, column] for maps in heatmaps)
                drawn = blend(image, first, colors)
                if second:
                    drawn = blend_signed(image, first - second[0])
                note = "" if has_one_target else score_note(cosines[index][column])
                panels.append(Panel(drawn, title, note))
            yield panels

    def plot(self) -> Figure:
        """Draw :meth:`panels`, those of an image next to each other."""
        explanation, rows = self.explanation, list[Row]()
        for panels in self.panels():
            if not rows or len(rows[-1]) + len(panels) > _WIDTH:
                rows.append([])
            rows[-1] += panels
        colors = HEAT if "positive" in explanation.maps else NEGATIVE
        cmap = None if len(explanation.maps) == 2 else colors
        legends = strip_legends(cmap, "supports", "contradicts")
        caption = f"{explanation.model} \N{MIDDLE DOT} {explanation.method}"
        return grid(rows, legends=legends, caption=caption)

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``search.csv`` (rank, file, score; that of each target) and ``search.png``.

        Args:
            folder: made where there is none; files of these names are replaced.

        Returns:
            The two files.

        Raises:
            InputError: the folder cannot be made or written to.
        """
        folder, numbers = make_folder(folder), {"score": self.scores.tolist()}
        if len(names := [f"score: {name}" for name in self.explanation.names]) > 1:
            numbers |= zip(names, self.explanation.scores.T.tolist(), strict=True)
        columns = {name: [f"{value:.6f}" for value in column] for name, column in numbers.items()}
        ranks = range(1, len(self.files) + 1)
        content = to_csv({"rank": ranks, "file": self.files, **columns})
        replace_file(folder / TABLE, lambda file: file.write(content))
        return folder / TABLE, save_figure(self.plot(), folder / FIGURE)
