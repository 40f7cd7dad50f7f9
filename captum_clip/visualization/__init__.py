"""Figures of maps, as matplotlib figures that belong to no window.

Arrays or tensors go in, and nothing is computed here but colors. Arguments of several figures:

- `images`: (B, 3, H, W), colors in [0, 1]; or a list of images, which may differ in size.
- maps: (B, K, h, w) in [0, 1] from :mod:`captum_clip.maps`, upsampled to (H, W) where they are
  coarser. They are maps of these images, not of a crop: :meth:`captum_clip.Explanation.plot` lays
  that on the whole photo.
- `names`: of the K targets; `scores`: (B, K) cosines; `caption`: below all; `labels`: of the B
  images, left of their rows, such as the model that each is of.
- `references`: images (3, H, W) that are targets themselves, None for the others; each stands at
  the end of its rows.
- `alpha`: opacity where a map is 1; where it is 0 the image shows through. `cmap`: a color map, by
  name or as it is.

They raise InputError for shapes, aspect ratios or ranges that do not fit and for an unknown color
map, and return a figure; ``figure.savefig(path)`` writes it, :func:`save_figure` safely so.
"""

from .. import attach

# colors are checked without torch, which overlays and charts load
__getattr__, __dir__ = attach(__name__, __file__)
__all__ = __dir__()
