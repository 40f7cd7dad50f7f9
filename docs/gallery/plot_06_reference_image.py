"""An image instead of a text
=============================

A target can be another image: what makes this scene look like a picture of a dog?
"""

from captum_clip import explain
from captum_clip.demo.scenes import draw_scene

scene = draw_scene(0, objects=["horse", "dog"])
dog = draw_scene(12, objects=["dog"])
found = explain(scene.image, reference=dog.image, model="demo/vit")

print(f"cosine of the two images: {found.scores.item():.3f}")
found.save("reference_image.png")
