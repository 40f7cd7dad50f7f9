"""Masks and boxes
==================

For other tools a map becomes regions: masks and boxes at the photo's size. The raw maps of `direct`
are in units of the cosine, so their largest labels a pixel with a text.
"""

import numpy as np
from PIL import Image

from captum_clip import explain, maps
from captum_clip.demo.scenes import draw_scene

scene = draw_scene(0, objects=["horse", "dog"])
found = explain(scene.image, ["a horse", "a dog"], model="demo/vit")

for region in found.regions(threshold=0.3):
    print(region.target, "in the boxes", region.boxes.tolist())
raw = maps.upsample(found.maps["positive"][0], scene.image.shape[:2])
labels = (1 + raw.argmax(0)) * (maps.normalize(raw.amax(0)) > 0.3)
colors = np.array([[0, 0, 0], [31, 119, 180], [255, 127, 14]], dtype=np.uint8)[labels]
mixed = Image.blend(Image.fromarray(scene.image), Image.fromarray(colors), 0.5)
mixed.resize((448, 448)).save("regions.png")
