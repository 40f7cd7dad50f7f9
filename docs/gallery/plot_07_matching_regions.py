"""Two images, region by region
===============================

Which places of two images make them alike? Each color marks a region here and its match there.
"""

from captum_clip import explain
from captum_clip.demo.scenes import draw_scene

scene = draw_scene(3, objects=["horse", "dog"])
other = draw_scene(8, objects=["dog", "donut"])
found = explain(scene.image, reference=other.image, model="demo/vit", side="pairs")

print(f"shares for each of {found.cells[0]} x {found.cells[1]} cells of the other image")
found.save("matching_regions.png")
