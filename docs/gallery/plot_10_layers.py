"""Layer by layer
=================

The attention of each layer, which no text changes, and the gradient of the cosine with respect to
it.
"""

from captum_clip import figures
from captum_clip.demo.scenes import draw_scene
from captum_clip.visualization import save_figure

scene = draw_scene(0, objects=["horse", "dog"])
figure = figures.layers(scene.image, ["a horse", "a dog"], model="demo/vit")
save_figure(figure, "layers.png")
