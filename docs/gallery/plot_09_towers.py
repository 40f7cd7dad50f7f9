"""A transformer, a ResNet and a SigLIP
=======================================

``direct`` runs on every tower. Its map is signed. The map and the rest, which belongs to no
patch, sum to the cosine.
"""

from captum_clip.bench import figures
from captum_clip.demo.scenes import draw_scene
from captum_clip.visualization import save_figure

scene = draw_scene(0, objects=["horse", "dog"])
models = ["demo/vit", "demo/resnet", "demo/siglip"]
figure = figures.compare_methods(scene.image, ["a horse", "a dog"], models=models, methods="direct")
save_figure(figure, "towers.png")
