"""Emotions
===========

A probe that was fitted on drawn paintings stands in for the text: what in this scene is amusing,
what is sad?
"""

from captum_clip import explain, load_clip, targets
from captum_clip.demo.scenes import draw_scene
from captum_clip.targets import EmotionProbe

clip = load_clip("demo/resnet")
probe = EmotionProbe.load("demo/resnet")
target = targets.emotion(clip, probe, ["amusement", "sadness"])

scene = draw_scene(4, objects=["amused face", "sad face"])
explain(scene.image, target, model=clip).save("emotions.png")
