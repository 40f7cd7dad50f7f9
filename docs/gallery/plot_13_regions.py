"""Masks and boxes
==================

For other tools a map becomes regions: masks and boxes at the photo's size. The label map gives each
pixel to the text that supports it most.
"""

from PIL import Image

from captum_clip import explain
from captum_clip.demo.scenes import draw_scene

scene = draw_scene(0, objects=["horse", "dog"])
found = explain(scene.image, ["a horse", "a dog"], model="demo/vit")

for region in found.regions(threshold=0.3):
    print(region.target, "in the boxes", region.boxes.tolist())
labels = found.label_map(threshold=0.3)[0].save("regions.png")
photo, colors = Image.fromarray(scene.image), Image.open(labels).convert("RGB")
Image.blend(photo, colors, 0.5).resize((448, 448)).save("regions.png")
