"""Which heads?
===============

Direct contributions are a sum over heads. Here are the four that add most, the four that take most
away, and all that is left.
"""

from captum_clip import figures
from captum_clip.demo.scenes import draw_scene
from captum_clip.visualization import save_figure

scene = draw_scene(0, objects=["horse", "dog"])
figure = figures.heads(scene.image, "a horse", model="demo/vit", count=4, sign="both")
save_figure(figure, "heads.png")
