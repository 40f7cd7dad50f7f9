"""Methods side by side
=======================

The same scene and text through several methods, on the vision transformer.
"""

from captum_clip.bench import figures
from captum_clip.demo.scenes import draw_scene
from captum_clip.visualization import save_figure

scene = draw_scene(0, objects=["horse", "dog"])
methods = ["direct", "conservative", "all-grad", "last-grad", "legrad", "rollout"]
figure = figures.compare_methods(
    scene.image, ["a horse", "a dog"], models="demo/vit", methods=methods
)
save_figure(figure, "methods.png")
