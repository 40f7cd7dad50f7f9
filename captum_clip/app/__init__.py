"""The page in the browser: library calls for what is typed and clicked, shown by Gradio.

:mod:`captum_clip.app.answers` asks the library, without Gradio; :mod:`captum_clip.app.page` is the
page and its server, which need the extra `app`.
"""
