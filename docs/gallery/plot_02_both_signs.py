"""For and against
==================

``sign="both"`` shows what raises the cosine in orange and what lowers it in blue. Both share one
scale, so a pale map says that there is little of its kind.
"""

from captum_clip import explain
from captum_clip.demo.scenes import draw_scene

scene = draw_scene(5, objects=["cow", "car"])
found = explain(
    scene.image, ["a cow", "a car"], model="demo/vit", method="conservative", sign="both"
)

for text, heatmap in zip(found.names, found.maps["negative"][0], strict=True):
    print(f"{text}: {heatmap.sum():.3f} against it")
found.save("both_signs.png")
