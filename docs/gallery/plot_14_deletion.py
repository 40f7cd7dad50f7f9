"""Is the map right?
====================

Remove pixels in the order of the map, and watch the cosine fall. A map of another text is the
control: a faithful map of "a horse" must fall sooner.
"""

from matplotlib.figure import Figure

from captum_clip import ClipSimilarity, DirectContribution, load_clip, metrics, targets
from captum_clip.demo.scenes import draw_scene

clip = load_clip("demo/vit")
images = clip.preprocess(draw_scene(0, objects=["horse", "dog"]).image)
forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
axes = Figure(figsize=(5, 3.2), layout="constrained").add_subplot()

for index, label in enumerate(["map of a horse", "map of a dog"]):
    raw = DirectContribution(forward).attribute(images, target=index)
    test = metrics.perturbation_test(forward, images, raw, 0, fill=metrics.mean_fill(images))
    axes.plot(test.score.fractions, test.score.most_first[0], label=label)
axes.set(xlabel="share of the pixels removed", ylabel='cosine with "a horse"')
axes.legend()
axes.figure.savefig("deletion.png", dpi=150)
