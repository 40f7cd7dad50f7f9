"""Which heads?
===============

Direct contributions are a sum over heads. Here are the four that add most, the four that take most
away, and all that is left.
"""

from captum_clip import load_clip
from captum_clip.apps import heads
from captum_clip.demo.scenes import draw_scene
from captum_clip.visualization import save_figure

scene = draw_scene(0, objects=["horse", "dog"])
clip = load_clip("demo/vit")
figure = heads.score_figure(clip, scene.image, "a horse", count=4, sign="both")
save_figure(figure, "heads.png")
