"""Pictures of arrays as arrays: uint8 [H, W, 3], drawn on the host."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def grid(images: np.ndarray, captions: Sequence[str], columns: int = 8) -> np.ndarray:
    """Images [N, H, W, 1 or 3], each stretched to its own range, in rows under their captions."""
    return sheet([(_stretched(image) * 255).round().astype(np.uint8) for image in images], captions, columns)


def sheet(tiles: Sequence[np.ndarray], captions: Sequence[str], columns: int = 8, side: int = 112) -> np.ndarray:
    """Pictures uint8 [H, W, 3], each scaled to a longer side of `side` pixels, in rows under their captions."""
    from PIL import Image, ImageDraw

    margin, text = 8, 14
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    resized = [_resized(tile, side) for tile in tiles]
    height = max(side // 2, *(tile.height for tile in resized))
    page = Image.new('RGB', (columns * (side + margin) + margin, rows * (height + text + margin) + margin), 'white')
    draw = ImageDraw.Draw(page)
    for index, (tile, caption) in enumerate(zip(resized, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = margin + column * (side + margin), margin + row * (height + text + margin)
        while draw.textlength(caption) > side:
            caption = caption[:-1]
        draw.text((left, top), caption, fill='black')
        page.paste(tile, (left, top + text))
    return np.asarray(page)


def _resized(picture: np.ndarray, side: int) -> Any:
    """With a longer side of `side` pixels, each of them one of the picture's."""
    from PIL import Image

    tile = Image.fromarray(picture)
    scale = side / max(tile.size)
    return tile.resize([max(round(length * scale), 1) for length in tile.size], Image.Resampling.NEAREST)


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Counts [true, predicted], coloured by the share of the true class."""
    size = len(class_names)
    labelled = size <= 30

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
        axes.set(xlabel='predicted', ylabel='true')
        if not labelled:
            return
        axes.set_xticks(range(size), class_names, rotation=90 if max(map(len, class_names)) > 2 else 0)
        axes.set_yticks(range(size), class_names)
        for row, column in np.argwhere(matrix):
            colour = 'white' if share[row, column] > 0.5 else 'black'
            axes.text(column, row, matrix[row, column], ha='center', va='center', color=colour, fontsize=8)

    side = 2 + 0.35 * size if labelled else 8.0
    return _figure(draw, (side, side))


def segmentation(
    images: np.ndarray, truth: np.ndarray, predicted: np.ndarray, class_names: Sequence[str], ignore_label: int
) -> np.ndarray:
    """Images [N, H, W, C] over their true and predicted class maps [N, H, W], with a legend of the classes."""
    import matplotlib
    from matplotlib.patches import Patch

    columns = len(images)
    palette = matplotlib.colormaps['tab20'](np.arange(len(class_names)) % 20)[:, :3]
    palette[0] = 0.12

    def coloured(labels: np.ndarray) -> np.ndarray:
        colours = palette[np.where(labels == ignore_label, 0, labels)]
        return np.where((labels == ignore_label)[..., None], 1.0, colours)

    def draw(figure: Any) -> None:
        rows = [[_stretched(image) for image in images], list(map(coloured, truth)), list(map(coloured, predicted))]
        for index, axes in enumerate(_cells(figure, 3, columns)):
            axes.imshow(rows[index // columns][index % columns], interpolation='nearest')
            if index % columns == 0:
                axes.text(-0.08, 0.5, ('image', 'true', 'predicted')[index // columns], rotation=90, ha='center',
                          va='center', transform=axes.transAxes, fontsize=9)  # fmt: skip
        patches = [Patch(color=colour, label=name) for colour, name in zip(palette, class_names, strict=True)]
        figure.legend(handles=patches[:shown], loc='outside lower center', ncols=across, fontsize=8)

    shown = min(40, len(class_names))
    width = max(1.4 * columns + 0.3, 3.0)
    across = min(shown, max(int((width - 0.2) / (0.6 + 0.075 * max(map(len, class_names)))), 1))
    return _figure(draw, (width, 4.7 + 0.18 * -(-shown // across)))


def curves(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Each metric of the rows of metrics.jsonl over steps: training as a line, other splits with marks."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ('step', 'split')))
    columns = min(3, len(names))
    lines = -(-len(names) // columns)

    def draw(figure: Any) -> None:
        for index, name in enumerate(names):
            axes = figure.add_subplot(lines, columns, index + 1)
            for split, style in (('train', 'C0-'), ('validation', 'C1.-'), ('test', 'C2*')):
                points = [(row['step'], row[name]) for row in rows if row['split'] == split and name in row]
                if points:
                    style = style if len(points) > 1 or split == 'test' else f'{style[:2]}o'
                    axes.plot(*zip(*points, strict=True), style, label=split, markersize=10 if split == 'test' else 4)
            axes.set(title=name.replace('_', ' '), xlabel='step')
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)

    return _figure(draw, (4.2 * columns, 3.2 * lines))


def _cells(figure: Any, rows: int, columns: int) -> list[Any]:
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in cells:
        axes.axis('off')
    return cells


def _stretched(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] in 0..1: the first three channels, or the first where there are two."""
    image = image[..., : 3 if image.shape[-1] >= 3 else 1]
    low, high = image.min(), image.max()
    scaled = (np.asarray(image, np.float64) - low) / max(high - low, 1e-9)
    return np.broadcast_to(scaled, (*scaled.shape[:2], 3))


def _figure(draw: Callable[[Any], None], size: tuple[float, float]) -> np.ndarray:
    """Draws on a figure of that many inches without any global state of matplotlib's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    draw(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
