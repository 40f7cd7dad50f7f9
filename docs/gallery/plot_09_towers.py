"""A transformer, a ResNet and a SigLIP
=======================================

``direct`` runs on every tower, and its maps are signed sums that add up to the cosine.
"""

from captum_clip import figures
from captum_clip.demo.scenes import draw_scene
from captum_clip.visualization import save_figure

scene = draw_scene(0, objects=["horse", "dog"])
models = ["demo/vit", "demo/resnet", "demo/siglip"]
figure = figures.compare(scene.image, ["a horse", "a dog"], models=models, methods="direct")
save_figure(figure, "towers.png")
