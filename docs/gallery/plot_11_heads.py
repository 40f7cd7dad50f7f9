"""Which heads?
===============

Direct contributions are a sum over heads. Here are the four that add most to a cosine, and the four
that take most away. All heads and the rest, which no position adds, sum to the cosine.
"""

from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from captum_clip import ClipSimilarity, DirectContribution, load_clip, targets
from captum_clip.demo.scenes import draw_scene

clip, box = load_clip("demo/vit"), (0, 1, 1, 0)
images = clip.preprocess(draw_scene(0, objects=["horse", "dog"]).image)
method = DirectContribution(ClipSimilarity(clip, targets.text(clip, "a horse")))
[[by_layer]], [rest] = method.attribute(images, target=0, per="head", return_rest=True)
heads, count = by_layer.flatten(0, 1), by_layer.shape[1]  # (M, h, w)
order = heads.sum((-2, -1)).argsort(descending=True).tolist()
chosen = [(f"layer {n // count}, head {n % count}", heads[n]) for n in order[:4] + order[-4:]]
chosen[4:4] = [("other heads", heads[order[4:-4]].sum(0))]
axes = Figure(figsize=(12, 5.4), layout="constrained").subplots(2, 5)
for ax, (name, raw) in zip(axes.flat, [*chosen, ("rest", rest[None, None])], strict=True):
    ax.imshow(images.mean((0, 1)).numpy(), "gray", extent=box)
    ax.imshow(raw.numpy(), "RdBu_r", alpha=0.7 * (raw.numel() > 1), extent=box, norm=CenteredNorm())
    ax.set(xticks=[], yticks=[], title=f"{name}: {raw.sum():+.3f}")
axes[0, 0].figure.suptitle(f"a horse: cosine {(heads.sum() + rest).item():.3f}")
axes[0, 0].figure.savefig("heads.png", dpi=110)
